"""Schedule runs of the model, and batch requests that wait at the same time.

All predictions of a worker pass through its Batcher. Requests are batched if every input and
output shares one dynamic first dimension and each golden row gives the same result inside a larger
batch; training decides that and writes it into the contract. No request waits for further requests
to arrive: a batch is whatever waits when the model is free. Results never depend on the other
requests of a batch, and neither do errors.
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
from serving.inference.model import Model, count_values
from serving.inference.request import InferenceRequest
from serving.metrics.metrics import Metrics

# Handing a run to a thread costs about 0.1 ms. Shorter runs than 1 ms stay on the event loop,
# where they delay other connections by less than 1 ms.
_MAX_INLINE_SECONDS = 0.001

# A model that once took longer than this is never run on the event loop again: the time of the
# golden rows does not bound the time of other values, such as a size that the model allocates.
_MAX_TRUSTED_SECONDS = 0.1

# The outputs in the order of InferenceRequest.outputs, or the error of the run.
Result = list[Array] | BaseException
Callback = Callable[[Result], None]


class PendingRequest:
    """A request that waits for a batch."""

    __slots__ = ("callback", "model", "request", "row_shapes", "rows", "submitted_at", "values")

    def __init__(self, model: Model, request: InferenceRequest, callback: Callback) -> None:
        self.model = model
        self.request = request
        # Receives the result, exactly once, on the event loop.
        self.callback = callback
        # Number of rows, and number of values of all inputs.
        self.rows = self.values = 0
        # Shape of each input without the first dimension.
        self.row_shapes: dict[str, tuple[int, ...]] = {}
        for name, array in request.inputs.items():
            self.rows = array.shape[0]
            self.values += array.size
            self.row_shapes[name] = array.shape[1:]
        self.submitted_at = time.perf_counter()

    def fits_with(self, other: "PendingRequest") -> bool:
        """Tell whether two requests can share a batch: they differ in their rows only."""
        return (
            self.model is other.model
            and self.row_shapes == other.row_shapes
            and self.request.outputs == other.request.outputs
        )


class Batcher:
    """Holds the served model, the requests that wait for it, and a thread for long runs.

    max_rows: the most rows of a batch.
    """

    def __init__(self, metrics: Metrics, *, max_rows: int) -> None:
        # Why a newer version than the served one could not be loaded; None if all is well.
        self.degraded: str | None = None
        self._model: Model | None = None
        # The last model that exceeded _MAX_TRUSTED_SECONDS.
        self._slow_model: Model | None = None
        self._loop: asyncio.AbstractEventLoop
        self._max_rows = max_rows
        # One thread: two runs at once would compete for the worker's core.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._metrics = metrics
        self._pending: deque[PendingRequest] = deque()
        # Whether _run_next_batch is scheduled on the event loop.
        self._is_scheduled = False
        # Whether the thread runs a batch. The next batch starts when it is done.
        self._is_thread_busy = False

    @property
    def model(self) -> Model:
        """The served model. Read it once per request: a reload may replace it at any time.

        Raises RequestError 503 before the first model is loaded.
        """
        if self._model is None:
            raise RequestError(503, "the model is not loaded yet")
        return self._model

    def serve(self, model: Model) -> None:
        """Use this model for new requests; submitted ones keep theirs. Call on the event loop."""
        self._model = model
        # Stored, because asyncio.get_running_loop() makes a system call (getpid) in Python 3.11.
        self._loop = asyncio.get_running_loop()

    @property
    def ready(self) -> bool:
        """Whether a model is loaded, which includes that its golden rows were reproduced."""
        return self._model is not None

    def submit(self, model: Model, request: InferenceRequest, callback: Callback) -> None:
        """Run the model for a request, and pass the result to callback().

        A batch consists of the requests submitted in one turn of the event loop, or while the
        thread ran the batch before. If the model does not support batching, each request is a run
        of its own; a short one finishes before this method returns.
        """
        if model.batches:
            self._pending.append(PendingRequest(model, request, callback))
            self._schedule()
        else:
            self._run_single(model, request, callback)

    async def run(self, model: Model, request: InferenceRequest) -> list[Array]:
        """Run the model for a request, and return its outputs. Raises the error of the run."""
        future: asyncio.Future[list[Array]] = self._loop.create_future()
        self.submit(model, request, partial(_resolve, future))
        return await future

    def close(self) -> None:
        """Wait for submitted long runs, then stop the thread."""
        self._thread.shutdown()

    def _is_short(self, model: Model, values: int) -> bool:
        """Tell whether a run of this many input values may block the event loop."""
        return (
            model is not self._slow_model and model.seconds_per_value * values < _MAX_INLINE_SECONDS
        )

    def _run_single(self, model: Model, request: InferenceRequest, callback: Callback) -> None:
        if self._is_short(model, count_values(request.inputs)):
            callback(self._try_run(model, request, 1))
            return
        future = self._loop.run_in_executor(self._thread, self._try_run, model, request, 1)
        future.add_done_callback(lambda done: callback(done.result()))

    def _schedule(self) -> None:
        if self._pending and not self._is_scheduled and not self._is_thread_busy:
            self._is_scheduled = True
            # call_soon runs after all sockets that are readable in this turn, so their requests
            # are in the batch.
            self._loop.call_soon(self._run_next_batch)

    def _run_next_batch(self) -> None:
        self._is_scheduled = False
        batch = self._next_batch()
        rows = sum(pending.rows for pending in batch)
        if self._is_short(batch[0].model, sum(pending.values for pending in batch)):
            self._deliver(batch, self._results(batch, rows))
            # The remaining requests wait for the next turn, so health probes are answered between
            # two batches.
            self._schedule()
            return
        self._is_thread_busy = True
        future = self._loop.run_in_executor(self._thread, self._results, batch, rows)

        def on_done(done: asyncio.Future[list[Result]]) -> None:
            self._is_thread_busy = False
            self._deliver(batch, done.result())
            self._schedule()

        future.add_done_callback(on_done)

    def _next_batch(self) -> list[PendingRequest]:
        """Remove the oldest request and all that fit with it, up to max_rows rows."""
        now = time.perf_counter()
        first = self._pending.popleft()
        batch, rows = [first], first.rows
        remaining: deque[PendingRequest] = deque()
        for pending in self._pending:
            if rows + pending.rows <= self._max_rows and pending.fits_with(first):
                batch.append(pending)
                rows += pending.rows
            else:
                remaining.append(pending)
        self._pending = remaining
        for pending in batch:
            self._metrics.queue_seconds.observe(now - pending.submitted_at)
        return batch

    def _deliver(self, batch: list[PendingRequest], results: list[Result]) -> None:
        for pending, result in zip(batch, results, strict=True):
            try:
                pending.callback(result)
            except Exception as error:  # noqa: BLE001 - must not affect the rest of the batch
                context = {"message": "delivering a prediction failed", "exception": error}
                self._loop.call_exception_handler(context)

    def _results(self, batch: list[PendingRequest], rows: int) -> list[Result]:
        """Return the result of each request, in order."""
        if len(batch) > 1:
            # If the batch fails, run each request alone so that only the bad one gets the error.
            with contextlib.suppress(Exception):
                return self._run_batched(batch, rows)
        return [self._try_run(pending.model, pending.request, pending.rows) for pending in batch]

    def _run_batched(self, batch: list[PendingRequest], rows: int) -> list[Result]:
        """Concatenate the inputs, run the model once, and split the outputs by request.

        Raises ValueError if the rows of inputs or outputs cannot be assigned to requests, and any
        error of the run.
        """
        model, request = batch[0].model, batch[0].request
        # A contract with unnamed dimensions allows inputs of different lengths in one request.
        # Concatenated, rows of different requests would be paired.
        if any(
            len(array) != pending.rows
            for pending in batch
            for array in pending.request.inputs.values()
        ):
            raise ValueError("inputs: expected the same number of rows in each")
        inputs = {
            name: np.concatenate([pending.request.inputs[name] for pending in batch])
            for name in request.inputs
        }
        outputs = self._run(model, InferenceRequest(inputs, request.outputs), rows)
        if any(len(output) != rows for output in outputs):
            raise ValueError("outputs: expected a row for each input row")
        results: list[Result] = []
        start = 0
        for pending in batch:
            end = start + pending.rows
            results.append([output[start:end] for output in outputs])
            start = end
        return results

    def _try_run(self, model: Model, request: InferenceRequest, rows: int) -> Result:
        try:
            return self._run(model, request, rows)
        except Exception as error:  # noqa: BLE001 - returned to the request
            return error

    def _run(self, model: Model, request: InferenceRequest, rows: int) -> list[Array]:
        started = time.perf_counter()
        outputs = model.run(request.inputs, request.outputs)
        seconds = time.perf_counter() - started
        if seconds > _MAX_TRUSTED_SECONDS:
            self._slow_model = model
        self._metrics.inference_seconds.observe(seconds)
        self._metrics.batch_rows.observe(rows)
        self._metrics.rows.add(rows)
        return outputs


def _resolve(future: asyncio.Future[list[Array]], result: Result) -> None:
    if future.done():
        return  # the awaiting task was cancelled
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
