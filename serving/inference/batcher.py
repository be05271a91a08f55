"""Where requests meet the model: the one seam between the endpoints and a session.

Endpoints hand in arrays and are told arrays; how runs are scheduled is decided here and nowhere
else. Requests that wait share a run, where the contract allows it; none waits for others to come.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from artifact.contract import Array
from serving.errors import RequestError
from serving.inference.model import Model, values_in
from serving.inference.request import InferenceRequest
from serving.metrics.metrics import Metrics

# A thread hop costs about 0.1 ms; a run below this is over before the hop is.
_INLINE_SECONDS = 0.001

# A model of which a run took that long is never run on the event loop again: what its golden rows
# cost says nothing of what its values can make it do.
_SLOW_SECONDS = 0.1

# A request's outputs, in the order that it asked for them, or why it has none.
Result = list[Array] | BaseException
Callback = Callable[[Result], None]


class PendingRequest:
    """A request that waits for a run.

    told: called with what came of it. sizes: of its inputs, but for the rows.
    """

    __slots__ = ("asked", "model", "rows", "since", "sizes", "told", "values")

    def __init__(self, model: Model, asked: InferenceRequest, told: Callback) -> None:
        self.model = model
        self.asked = asked
        self.told = told
        self.rows = self.values = 0
        self.sizes: dict[str, tuple[int, ...]] = {}
        for name, array in asked.inputs.items():
            self.rows = array.shape[0]
            self.values += array.size
            self.sizes[name] = array.shape[1:]
        self.since = time.perf_counter()

    def may_share_with(self, other: "PendingRequest") -> bool:
        """Tell whether both can be one run: of one model, and alike but in their rows."""
        return (
            self.model is other.model
            and self.sizes == other.sizes
            and self.asked.outputs == other.asked.outputs
        )


class Batcher:
    """The model that is served at the moment, and the thread its long runs go to.

    degraded: why that is not the model that should be served; None when it is. max_rows: the most
    of a run.
    """

    def __init__(self, metrics: Metrics, *, max_rows: int) -> None:
        self.degraded: str | None = None
        self._model: Model | None = None
        self._slow: Model | None = None
        self._loop: asyncio.AbstractEventLoop
        self._max_rows = max_rows
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._metrics = metrics
        self._waiting: deque[PendingRequest] = deque()
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

    def submit(self, model: Model, asked: InferenceRequest, told: Callback) -> None:
        """Have the model run for one request, and call told() with what came of it.

        In the next turn of the event loop, with all that came in this one; a run that would hold
        it up goes to a thread of its own, and what comes meanwhile shares the next one.
        """
        if model.batches:
            self._waiting.append(PendingRequest(model, asked, told))
            self._schedule()
        else:
            self._run_single(model, asked, told)

    async def run(self, model: Model, asked: InferenceRequest) -> list[Array]:
        """Return what came of a run for one request."""
        answer: asyncio.Future[list[Array]] = self._loop.create_future()
        self.submit(model, asked, partial(_settle, answer))
        return await answer

    def close(self) -> None:
        """Wait for the runs under way and end the thread."""
        self._thread.shutdown()

    def _is_short(self, model: Model, values: int) -> bool:
        """Tell whether a run of so many values may be made on the event loop."""
        return model is not self._slow and model.seconds_per_value * values < _INLINE_SECONDS

    def _run_single(self, model: Model, asked: InferenceRequest, told: Callback) -> None:
        if self._is_short(model, values_in(asked.inputs)):
            told(self._outcome(model, asked, 1))
            return
        running = self._loop.run_in_executor(self._thread, self._outcome, model, asked, 1)
        running.add_done_callback(lambda done: told(done.result()))

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
            self._deliver(batch, self._outcomes(batch, rows))
            # What is left waits for another turn: health is asked in between.
            self._schedule()
            return
        self._busy = True
        running = self._loop.run_in_executor(self._thread, self._outcomes, batch, rows)

        def ran(done: asyncio.Future[list[Result]]) -> None:
            self._busy = False
            self._deliver(batch, done.result())
            self._schedule()

        running.add_done_callback(ran)

    def _deliver(self, batch: list[PendingRequest], outcomes: list[Result]) -> None:
        for one, outcome in zip(batch, outcomes, strict=True):
            try:
                one.told(outcome)
            except Exception as error:  # noqa: BLE001 - of no harm to the others
                self._loop.call_exception_handler({"message": "answering", "exception": error})

    def _next_batch(self) -> list[PendingRequest]:
        """Return the requests of the next run, the longest waiting first; the others wait on."""
        now = time.perf_counter()
        first = self._waiting.popleft()
        batch, rows = [first], first.rows
        left: deque[PendingRequest] = deque()
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

    def _outcomes(self, batch: list[PendingRequest], rows: int) -> list[Result]:
        """Return what came of each request: never a failure because of another one."""
        if len(batch) > 1:
            # Whose fault it is shows when each runs alone.
            with contextlib.suppress(Exception):
                return self._run_batched(batch, rows)
        return [self._outcome(one.model, one.asked, one.rows) for one in batch]

    def _run_batched(self, batch: list[PendingRequest], rows: int) -> list[Result]:
        model, asked = batch[0].model, batch[0].asked
        if any(len(array) != one.rows for one in batch for array in one.asked.inputs.values()):
            raise ValueError("not all inputs have as many rows")
        inputs = {
            name: np.concatenate([one.asked.inputs[name] for one in batch]) for name in asked.inputs
        }
        outputs = self._timed(model, InferenceRequest(inputs, asked.outputs), rows)
        if any(len(output) != rows for output in outputs):
            raise ValueError("the model does not give a row for each row")
        found: list[Result] = []
        start = 0
        for one in batch:
            end = start + one.rows
            found.append([output[start:end] for output in outputs])
            start = end
        return found

    def _outcome(self, model: Model, asked: InferenceRequest, rows: int) -> Result:
        try:
            return self._timed(model, asked, rows)
        except Exception as error:  # noqa: BLE001 - it is what came of it
            return error

    def _timed(self, model: Model, asked: InferenceRequest, rows: int) -> list[Array]:
        started = time.perf_counter()
        outputs = model.run(asked.inputs, asked.outputs)
        seconds = time.perf_counter() - started
        if seconds > _SLOW_SECONDS:
            self._slow = model
        self._metrics.inference_seconds.observe(seconds)
        self._metrics.batch_rows.observe(rows)
        self._metrics.rows.add(rows)
        return outputs


def _settle(answer: asyncio.Future[list[Array]], outcome: Result) -> None:
    if answer.done():
        return  # whoever waited was cancelled
    if isinstance(outcome, BaseException):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
