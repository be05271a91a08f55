"""Where requests meet the model: the one seam between the endpoints and a session.

Endpoints hand in arrays and get arrays back; how runs are scheduled is decided here and
nowhere else. Each request runs by itself.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from serving.contract import Array
from serving.errors import RequestError
from serving.metrics import Metrics
from serving.model import Model, rows_in

# A thread hop costs about 0.1 ms; a run below this is over before the hop is.
_INLINE_SECONDS = 0.001


class Runner:
    """The model that is served at the moment, and the thread its long runs go to.

    degraded: why that is not the model that should be served; None when it is.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.degraded: str | None = None
        self._model: Model | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._metrics = metrics

    @property
    def model(self) -> Model:
        """The model that is served; ask once a request. Raises RequestError before there is one."""
        if self._model is None:
            raise RequestError(503, "the model is not loaded yet")
        return self._model

    def serve(self, model: Model) -> None:
        """Answer with this model from now on; requests under way keep the one they began with."""
        self._model = model

    @property
    def ready(self) -> bool:
        """Whether there is a model, its golden rows having come out right in this process."""
        return self._model is not None

    async def run(
        self, model: Model, inputs: dict[str, Array], outputs: Sequence[str]
    ) -> list[Array]:
        """Return outputs of the model for one request, in the order of their names.

        A run that would hold up the event loop goes to a thread of its own.
        """
        rows = rows_in(inputs) if model.contract.batches else 1
        if model.seconds_per_row * rows < _INLINE_SECONDS:
            answered, seconds = _timed(model, inputs, outputs)
        else:
            loop = asyncio.get_running_loop()
            answered, seconds = await loop.run_in_executor(
                self._thread, _timed, model, inputs, outputs
            )
        self._metrics.inference_seconds.observe(seconds)
        self._metrics.rows.add(rows)
        return answered

    def close(self) -> None:
        """Wait for the runs under way and end the thread."""
        self._thread.shutdown()


def _timed(
    model: Model, inputs: dict[str, Array], outputs: Sequence[str]
) -> tuple[list[Array], float]:
    started = time.perf_counter()
    answered = model.run(inputs, outputs)
    return answered, time.perf_counter() - started
