"""Where requests meet the model: the one seam between the endpoints and a session.

Endpoints hand in arrays and get arrays back; how runs are scheduled is decided here and nowhere
else. Requests that wait share a run, where the contract allows it; none waits for others to come.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from serving.contract import Array
from serving.errors import RequestError
from serving.metrics import Metrics
from serving.model import Model, rows_in, values_in

# A thread hop costs about 0.1 ms; a run below this is over before the hop is.
_INLINE_SECONDS = 0.001

# A model of which a run took that long is never run on the event loop again: what its golden rows
# cost says nothing of what its values can make it do.
_SLOW_SECONDS = 0.1

Inputs = dict[str, Array]


@dataclass(slots=True, eq=False)
class Waiting:
    """A request that waits for a run. answer: its outputs, in the order of their names."""

    model: Model
    inputs: Inputs
    outputs: Sequence[str]
    rows: int
    values: int
    answer: asyncio.Future[list[Array]]
    since: float

    def may_share_with(self, other: "Waiting") -> bool:
        """Tell whether both can be one run: of one model, and alike but in their rows."""
        return (
            self.model is other.model
            and self.outputs == other.outputs
            and all(
                array.shape[1:] == other.inputs[name].shape[1:]
                for name, array in self.inputs.items()
            )
        )


class Runner:
    """The model that is served at the moment, and the thread its long runs go to.

    degraded: why that is not the model that should be served; None when it is. under_way: says how
    many requests of this worker have come and are not answered. max_rows: the most of a run.
    """

    def __init__(self, metrics: Metrics, *, max_rows: int) -> None:
        self.degraded: str | None = None
        self.under_way: Callable[[], int] = lambda: 1
        self._model: Model | None = None
        self._slow: Model | None = None
        self._loop: asyncio.AbstractEventLoop
        self._max_rows = max_rows
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._metrics = metrics
        self._waiting: deque[Waiting] = deque()
        # Whether the next batch is to be run in a turn of the event loop, or waits for the thread.
        self._scheduled = self._busy = False

    @property
    def model(self) -> Model:
        """The model that is served; ask once a request. Raises RequestError before there is one."""
        if self._model is None:
            raise RequestError(503, "the model is not loaded yet")
        return self._model

    def serve(self, model: Model) -> None:
        """Answer with this model from now on; requests under way keep the one they began with.

        Called on the event loop that they run on.
        """
        self._model = model
        # Python 3.11 asks the kernel for the process each time that it is asked for the loop.
        self._loop = asyncio.get_running_loop()

    @property
    def ready(self) -> bool:
        """Whether there is a model, its golden rows having come out right in this process."""
        return self._model is not None

    async def run(self, model: Model, inputs: Inputs, outputs: Sequence[str]) -> list[Array]:
        """Return outputs of the model for one request, in the order of their names.

        A run that would hold up the event loop goes to a thread of its own. What comes meanwhile,
        or in the same turn of the event loop, waits and shares the next run.
        """
        rows, values = rows_in(inputs), values_in(inputs)
        if not model.contract.batches:
            return await self._run_alone(model, inputs, outputs, values)
        if self._is_alone() and self._is_short(model, values):
            self._metrics.queue_seconds.observe(0)
            return self._timed(model, inputs, outputs, rows)
        answer: asyncio.Future[list[Array]] = self._loop.create_future()
        self._waiting.append(
            Waiting(model, inputs, outputs, rows, values, answer, time.perf_counter())
        )
        self._schedule()
        return await answer

    def close(self) -> None:
        """Wait for the runs under way and end the thread."""
        self._thread.shutdown()

    def _is_alone(self) -> bool:
        """Tell whether no other request of this worker is under way: then there is none to join."""
        return not self._waiting and not self._busy and self.under_way() <= 1

    def _is_short(self, model: Model, values: int) -> bool:
        """Tell whether a run of so many values may be made on the event loop."""
        return model is not self._slow and model.seconds_per_value * values < _INLINE_SECONDS

    async def _run_alone(
        self, model: Model, inputs: Inputs, outputs: Sequence[str], values: int
    ) -> list[Array]:
        if self._is_short(model, values):
            return self._timed(model, inputs, outputs, 1)
        return await self._loop.run_in_executor(
            self._thread, self._timed, model, inputs, outputs, 1
        )

    def _schedule(self) -> None:
        if self._waiting and not self._scheduled and not self._busy:
            self._scheduled = True
            # After all that is ready in this turn, so that it is in the batch.
            self._loop.call_soon(self._run_batch)

    def _run_batch(self) -> None:
        """Run what has gathered, as much of it as one run may have."""
        self._scheduled = False
        batch = self._next_batch()
        rows = sum(one.rows for one in batch)
        if self._is_short(batch[0].model, sum(one.values for one in batch)):
            self._answer(batch, rows)
            # What is left waits for another turn: health is asked in between.
            self._schedule()
            return
        self._busy = True
        running = self._loop.run_in_executor(self._thread, self._answers, batch, rows)

        def ran(done: asyncio.Future[list[list[Array] | BaseException]]) -> None:
            self._busy = False
            _tell(batch, done.result())
            self._schedule()

        running.add_done_callback(ran)

    def _next_batch(self) -> list[Waiting]:
        """Return the requests of the next run, the longest waiting first; the others wait on."""
        now = time.perf_counter()
        first = self._waiting.popleft()
        batch, rows, left = [first], first.rows, deque[Waiting]()
        for one in self._waiting:
            if rows + one.rows <= self._max_rows and one.may_share_with(first):
                batch.append(one)
                rows += one.rows
            else:
                left.append(one)
        self._waiting = left
        for one in batch:
            self._metrics.queue_seconds.observe(now - one.since)
        return batch

    def _answer(self, batch: list[Waiting], rows: int) -> None:
        _tell(batch, self._answers(batch, rows))

    def _answers(self, batch: list[Waiting], rows: int) -> list[list[Array] | BaseException]:
        """Return each request's outputs, or why it has none: never because of another one."""
        if len(batch) > 1:
            # Whose fault it is shows when each runs alone.
            with contextlib.suppress(Exception):
                return list(self._shared(batch, rows))
        return [self._alone(one) for one in batch]

    def _shared(self, batch: list[Waiting], rows: int) -> list[list[Array]]:
        first = batch[0]
        inputs = {
            name: np.concatenate([one.inputs[name] for one in batch]) for name in first.inputs
        }
        outputs = self._timed(first.model, inputs, first.outputs, rows)
        if any(len(output) != rows for output in outputs):
            raise ValueError("the model does not give a row for each row")
        answers, start = [], 0
        for one in batch:
            answers.append([output[start : start + one.rows] for output in outputs])
            start += one.rows
        return answers

    def _alone(self, one: Waiting) -> list[Array] | BaseException:
        try:
            return self._timed(one.model, one.inputs, one.outputs, one.rows)
        except Exception as error:  # noqa: BLE001 - it is the request's answer
            return error

    def _timed(
        self, model: Model, inputs: Inputs, outputs: Sequence[str], rows: int
    ) -> list[Array]:
        started = time.perf_counter()
        answered = model.run(inputs, outputs)
        seconds = time.perf_counter() - started
        if seconds > _SLOW_SECONDS:
            self._slow = model
        self._metrics.inference_seconds.observe(seconds)
        self._metrics.batch_rows.observe(rows)
        self._metrics.rows.add(rows)
        return answered


def _tell(batch: list[Waiting], answers: list[list[Array] | BaseException]) -> None:
    for one, answer in zip(batch, answers, strict=True):
        if one.answer.done():
            continue  # whoever waited was cancelled
        if isinstance(answer, BaseException):
            one.answer.set_exception(answer)
        else:
            one.answer.set_result(answer)
