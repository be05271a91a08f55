"""What POST /v2/models/{name}[/versions/{version}]/infer answers: tensors in, tensors out.

Called by endpoint.py with each request. The codec is tensors.py.
"""

from serving.endpoint import Answer, Call
from serving.errors import RequestError
from serving.model import Model
from serving.runner import Runner

PREFIX, SUFFIX = "/v2/models/", "/infer"
# As which its metrics are counted, whatever the name in the path.
ENDPOINT = f"{PREFIX}{{name}}{SUFFIX}"
_MOST_DIGITS = 18


def is_infer(path: str) -> bool:
    """Tell whether a path is one of these; `infer` may be a model's name or version, too."""
    return (
        path.startswith(PREFIX)
        and path.endswith(SUFFIX)
        and len(path) > len(PREFIX) + len(SUFFIX)
        and not path.endswith(f"/versions{SUFFIX}")
    )


class Infer:
    """The outputs of the model that is served at the moment, if it is the one in the path."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def __call__(self, call: Call) -> Answer:
        """Answer one request. Raises RequestError."""
        model = self._runner.model
        check_name(model, call.path[len(PREFIX) : -len(SUFFIX)])
        body = await call.read()
        json_bytes = None if call.json_bytes is None else _count(call.json_bytes)
        asked = model.tensors.decode(body, json_bytes)
        outputs = await self._runner.run(model, asked.inputs, asked.outputs)
        return Answer(model.headers, *model.tensors.encode(asked, outputs))


def check_name(model: Model, named: str) -> None:
    """Refuse, with 404, another model or version than the one that is served.

    named: as in a path, `iris` or `iris/versions/1`.
    """
    if named not in model.paths:
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
