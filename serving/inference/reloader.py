"""Swap the model of a worker when another one is current, while requests go on.

Made by app.py in each worker, where the source of the model is followed. The new model is
opened on a thread; a request sees the old one or the new one, never half of each.
"""

import asyncio
import threading
import time
from collections.abc import Callable

from artifact.contract import ContractMismatch
from serving import logs
from serving.inference.batcher import Runner
from serving.inference.model import Model
from serving.metrics.metrics import Metrics
from serving.workers.model_source import ServedVersion
from serving.workers.shared_value import InterProcessLock, SharedValue

_LOOK_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 60.0


class Reloader:
    """The thread of one worker that keeps its model the current one.

    open_model: opens what is current; may raise anything. serve: is called on the event loop.
    """

    def __init__(
        self,
        current: SharedValue[ServedVersion],
        runner: Runner,
        metrics: Metrics,
        open_model: Callable[[ServedVersion], Model],
        serve: Callable[[Model], None],
    ) -> None:
        self._current = current
        self._runner = runner
        self._metrics = metrics
        self._open_model = open_model
        self._serve = serve
        # One worker after the other: a swap takes memory for several models.
        self._turn = InterProcessLock()
        self._stopped = threading.Event()
        self._served = self._tried = current.get()
        self._failures = 0
        self._not_before = 0.0
        self._failure: str | None = None

    def start(self, served: ServedVersion) -> None:
        """Begin with what this worker serves; call from the event loop."""
        self._served = self._tried = served
        # A daemon: a large model that is being opened does not hold up the end.
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, args=(loop,), name="reloader", daemon=True).start()

    def stop(self) -> None:
        """Swap no more."""
        self._stopped.set()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stopped.wait(_LOOK_SECONDS):
            now = self._current.get()
            if now.is_same_artifact(self._served):
                self._failure = None
            elif not now.is_same_artifact(self._tried) or time.monotonic() >= self._not_before:
                self._swap(now, loop)
            self._runner.degraded = self._failure or now.degraded
            self._metrics.degraded.set(self._runner.degraded is not None)

    def _swap(self, now: ServedVersion, loop: asyncio.AbstractEventLoop) -> None:
        """Open what is current and serve it; keep what is served when that fails."""
        if not now.is_same_artifact(self._tried):
            self._failures = 0
        self._tried = now
        try:
            with self._turn:
                model = self._open_model(now)
        except Exception as error:  # noqa: BLE001 - whatever it is, the last good model is kept
            self._failures += 1
            self._note_failure(now, error)
            return
        if not self._stopped.is_set():
            loop.call_soon_threadsafe(self._serve, model)
            self._served, self._failure = now, None

    def _note_failure(self, now: ServedVersion, error: Exception) -> None:
        self._not_before = time.monotonic() + min(_LONGEST_PAUSE_SECONDS, 2.0**self._failures)
        self._metrics.open_failures.add(1)
        why = error.differences if isinstance(error, ContractMismatch) else [type(error).__name__]
        self._failure = f"{now.version}: {'; '.join(why)}"
        if self._failures == 1:
            logs.error("model_not_opened", version=now.version, reason=str(error))
