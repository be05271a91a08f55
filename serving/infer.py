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


class Infer:
    """The outputs of the model that is served at the moment, if it is the one in the path."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def __call__(self, call: Call) -> Answer:
        """Answer one request. Raises RequestError."""
        model = self._runner.model
        check_name(model, call.path[len(PREFIX) : -len(SUFFIX)])
        body = await call.read()
        asked = model.tensors.decode(body, call.json_bytes)
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
