"""What POST /predict and /predict/label answer: rows in, rows or labels out.

Called by endpoint.py with each request, and by routes.py with the model's own sample.
"""

from collections.abc import Callable

from serving.contract import Array
from serving.endpoint import Answer, Call
from serving.errors import RequestError
from serving.metadata import no_labels
from serving.model import Model
from serving.rows import Rows, why_no_rows
from serving.runner import Runner

Encode = Callable[[Rows, list[Array]], bytes]


class Predict:
    """`encode(outputs)` of the model that is served at the moment.

    needs_labels: whether it is for classifiers only.
    """

    def __init__(self, runner: Runner, encode: Encode, *, needs_labels: bool) -> None:
        self._runner = runner
        self._encode = encode
        self._needs_labels = needs_labels

    async def __call__(self, call: Call) -> Answer:
        """Answer one request. Raises RequestError."""
        model = self._runner.model
        rows = rows_of(model, needs_labels=self._needs_labels)
        inputs = rows.decode(await call.read())
        outputs = await self._runner.run(model, inputs, model.output_names)
        return Answer(model.headers, self._encode(rows, outputs))


def rows_of(model: Model, *, needs_labels: bool) -> Rows:
    """Return a model's codec. Raises RequestError 404 when it cannot answer this path."""
    if model.rows is None:
        raise RequestError(404, str(why_no_rows(model.contract)))
    if needs_labels and not model.rows.has_labels:
        raise no_labels(model.contract)
    return model.rows
