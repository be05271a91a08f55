"""Operation of POST /predict and /predict/label: JSON rows in, predictions or labels out."""

from collections.abc import Callable

from artifact.contract import Array
from serving.errors import RequestError
from serving.http.endpoint import HttpExchange
from serving.http.headers import Headers, ModelHeaders
from serving.http.metadata import no_labels
from serving.inference.codecs.rows import RowsCodec, rows_unsupported_reason
from serving.inference.model import Model
from serving.inference.request import InferenceRequest

# RowsCodec.encode or RowsCodec.encode_labels.
Encode = Callable[[RowsCodec, list[Array]], bytes]


class PredictOperation:
    """Parses and renders requests of one of the two paths.

    encode: writes the body of a response. needs_labels: whether the path is for classifiers only.
    """

    def __init__(self, encode: Encode, *, needs_labels: bool) -> None:
        self._encode = encode
        self._needs_labels = needs_labels

    def parse(self, model: Model, exchange: HttpExchange) -> InferenceRequest:
        """Return the inference request for all outputs.

        Raises RequestError: 404 if the model does not support the path, and the errors of
        RowsCodec.decode.
        """
        codec = rows_codec_of(model, needs_labels=self._needs_labels)
        return InferenceRequest(codec.decode(exchange.body), model.output_names)

    def render(
        self, model: Model, headers: ModelHeaders, _: InferenceRequest, outputs: list[Array]
    ) -> tuple[Headers, bytes]:
        """Return headers and body of the response."""
        codec = rows_codec_of(model, needs_labels=self._needs_labels)
        return headers.json, self._encode(codec, outputs)


def rows_codec_of(model: Model, *, needs_labels: bool) -> RowsCodec:
    """Return the model's rows codec. Raises RequestError 404 if the path does not support it."""
    if model.rows_codec is None:
        raise RequestError(404, str(rows_unsupported_reason(model.contract)))
    if needs_labels and not model.rows_codec.has_labels:
        raise no_labels(model.contract)
    return model.rows_codec
