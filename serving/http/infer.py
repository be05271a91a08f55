"""Operation of POST /v2/models/{name}[/versions/{version}]/infer: tensors in, tensors out."""

from artifact.contract import Array
from serving.errors import RequestError
from serving.http.endpoint import HttpExchange
from serving.http.headers import Headers, ModelHeaders
from serving.inference.codecs.open_inference import OpenInferenceRequest
from serving.inference.model import Model

PREFIX, SUFFIX = "/v2/models/", "/infer"
# The endpoint's name in metrics. The path's names are chosen by clients: as label values they
# could be of any number.
ENDPOINT = f"{PREFIX}{{name}}{SUFFIX}"
# Enough for any size of a body, and fast to convert: int() takes quadratic time.
_MAX_DIGITS = 18
_MAX_SHOWN_CHARACTERS = 40
_MAX_NAME_CHARACTERS = 200
# Size of the JSON at the start of a body with binary data, in requests and responses.
_JSON_BYTES = b"inference-header-content-length"


def is_infer(path: str) -> bool:
    """Tell whether a path is the infer endpoint of any model.

    `infer` may also be the name or the version of a model: /v2/models/infer and
    /v2/models/iris/versions/infer are metadata.
    """
    return (
        path.startswith(PREFIX)
        and path.endswith(SUFFIX)
        and len(path) > len(PREFIX) + len(SUFFIX)
        and not path.endswith(f"/versions{SUFFIX}")
    )


class InferOperation:
    """Parses and renders requests of the Open Inference Protocol."""

    def parse(self, model: Model, exchange: HttpExchange) -> OpenInferenceRequest:
        """Return the inference request.

        Raises RequestError: 404 if the path names another model, 400 for an invalid
        Inference-Header-Content-Length, and the errors of OpenInferenceCodec.decode.
        """
        check_name(model, exchange.path[len(PREFIX) : -len(SUFFIX)])
        json_bytes = exchange.headers.get(_JSON_BYTES)
        return model.open_inference_codec.decode(
            exchange.body, None if json_bytes is None else _parse_size(json_bytes)
        )

    def render(
        self,
        model: Model,
        headers: ModelHeaders,
        request: OpenInferenceRequest,
        outputs: list[Array],
    ) -> tuple[Headers, bytes]:
        """Return headers and body of the response."""
        body, json_bytes = model.open_inference_codec.encode(request, outputs)
        if json_bytes is None:
            return headers.json, body
        return headers.binary.plus((_JSON_BYTES, b"%d" % json_bytes)), body


def check_name(model: Model, path_name: str) -> None:
    """Raise RequestError 404 if the path names another model or version than the served one.

    path_name: as in the path, `iris` or `iris/versions/1`.
    """
    if path_name not in model.path_names:
        name, version = model.contract.name, model.contract.version
        raise RequestError(
            404, f"/v2/models/{path_name[:_MAX_NAME_CHARACTERS]}: no such model; this server "
            f"serves {name}, version {version}",
        )  # fmt: skip


def _parse_size(value: bytes) -> int:
    if not value.isdigit() or len(value) > _MAX_DIGITS:
        actual = value.decode("latin-1")[:_MAX_SHOWN_CHARACTERS]
        raise RequestError(
            400, f"Inference-Header-Content-Length: expected bytes of JSON, got {actual!r}"
        )
    return int(value)
