"""What POST /v2/models/{name}[/versions/{version}]/infer answers: tensors in, tensors out.

Called by endpoint.py with each request. The codec is tensors.py.
"""

from artifact.contract import Array
from serving.errors import RequestError
from serving.http.endpoint import HttpExchange
from serving.http.headers import Headers
from serving.inference.codecs.open_inference import OpenInferenceRequest
from serving.inference.model import Model

PREFIX, SUFFIX = "/v2/models/", "/infer"
# As which its metrics are counted, whatever the name in the path.
ENDPOINT = f"{PREFIX}{{name}}{SUFFIX}"
_MOST_DIGITS = 18
_JSON_BYTES = b"inference-header-content-length"


def is_infer(path: str) -> bool:
    """Tell whether a path is one of these; `infer` may be a model's name or version, too."""
    return (
        path.startswith(PREFIX)
        and path.endswith(SUFFIX)
        and len(path) > len(PREFIX) + len(SUFFIX)
        and not path.endswith(f"/versions{SUFFIX}")
    )


class InferOperation:
    """The codec of tensors, for the model in the path, if it is the one that is served."""

    def decode(self, model: Model, exchange: HttpExchange) -> OpenInferenceRequest:
        """Return what a request asks of the model. Raises RequestError."""
        check_name(model, exchange.path[len(PREFIX) : -len(SUFFIX)])
        json_bytes = exchange.headers.get(_JSON_BYTES)
        return model.open_inference_codec.decode(
            exchange.body, None if json_bytes is None else _count(json_bytes)
        )

    def encode(
        self, model: Model, asked: OpenInferenceRequest, outputs: list[Array]
    ) -> tuple[Headers, bytes]:
        """Return the answer; where binary data follows its JSON, headers say so."""
        body, json_bytes = model.open_inference_codec.encode(asked, outputs)
        if json_bytes is None:
            return model.headers, body
        return model.headers_of_binary.plus((_JSON_BYTES, b"%d" % json_bytes)), body


def check_name(model: Model, named: str) -> None:
    """Refuse, with 404, another model or version than the one that is served.

    named: as in a path, `iris` or `iris/versions/1`.
    """
    if named not in model.path_names:
        name, version = model.contract.name, model.contract.version
        raise RequestError(
            404, f"/v2/models/{named[:200]}: no such model; this server serves {name}, version "
            f"{version}",
        )  # fmt: skip


def _count(value: bytes) -> int:
    if not value.isdigit() or len(value) > _MOST_DIGITS:
        came = value.decode("latin-1")[:40]
        raise RequestError(
            400, f"Inference-Header-Content-Length: expected bytes of JSON, got {came!r}"
        )
    return int(value)
