"""What POST /predict and /predict/label answer: rows in, rows or labels out.

Called by endpoint.py with each request, and by routes.py with the model's own sample.
"""

from collections.abc import Callable

from artifact.contract import Array
from serving.errors import RequestError
from serving.http.endpoint import HttpExchange
from serving.http.headers import Headers
from serving.http.metadata import no_labels
from serving.inference.codecs.rows import RowsCodec, rows_unsupported_reason
from serving.inference.model import Model
from serving.inference.request import InferenceRequest

Encode = Callable[[RowsCodec, list[Array]], bytes]


class PredictOperation:
    """The codec of rows; `encode(outputs)` is the answer.

    needs_labels: whether it is for classifiers only.
    """

    def __init__(self, encode: Encode, *, needs_labels: bool) -> None:
        self._encode = encode
        self._needs_labels = needs_labels

    def decode(self, model: Model, exchange: HttpExchange) -> InferenceRequest:
        """Return what a request asks of the model. Raises RequestError."""
        rows = rows_of(model, needs_labels=self._needs_labels)
        return InferenceRequest(rows.decode(exchange.body), model.output_names)

    def encode(
        self, model: Model, _: InferenceRequest, outputs: list[Array]
    ) -> tuple[Headers, bytes]:
        """Return the answer."""
        rows = rows_of(model, needs_labels=self._needs_labels)
        return model.headers, self._encode(rows, outputs)


def rows_of(model: Model, *, needs_labels: bool) -> RowsCodec:
    """Return a model's codec. Raises RequestError 404 when it cannot answer this path."""
    if model.rows_codec is None:
        raise RequestError(404, str(rows_unsupported_reason(model.contract)))
    if needs_labels and not model.rows_codec.has_labels:
        raise no_labels(model.contract)
    return model.rows_codec
