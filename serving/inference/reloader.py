"""Open the model of a worker at start-up, and again whenever another version is to be served.

One loop does both: it opens, and after a failure it logs, counts, and retries with backoff. It
runs on a thread, so the event loop keeps answering. A model is replaced as a whole: a request
sees the old model or the new one, never parts of both.
"""

import asyncio
import threading
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from artifact.contract import ContractMismatch
from serving import logs
from serving.inference.batcher import Batcher
from serving.inference.model import Model
from serving.metrics.metrics import Metrics
from serving.workers.backoff import Backoff
from serving.workers.model_source import ServedVersion
from serving.workers.shared_value import InterProcessLock, SharedValue

_POLL_SECONDS = 0.1
_FIRST_PAUSE_SECONDS = 2.0
_MAX_PAUSE_SECONDS = 60.0


class Reloader:
    """Keeps the model of one worker at the served version.

    served_version: the version to serve; watched for changes if `watches`. any_ready: whether a
    worker of this server was ever ready. open_model: opens a version; may raise any Exception.
    serve: receives each opened model, on the event loop.
    """

    def __init__(  # noqa: PLR0913 - its collaborators, all named
        self,
        served_version: SharedValue[ServedVersion],
        *,
        any_ready: SharedValue[bool],
        batcher: Batcher,
        metrics: Metrics,
        open_model: Callable[[ServedVersion], Model],
        serve: Callable[[Model], None],
        watches: bool,
    ) -> None:
        self._served_version = served_version
        self._any_ready = any_ready
        self._batcher = batcher
        self._metrics = metrics
        self._open_model = open_model
        self._serve = serve
        self._watches = watches
        # Workers reload one after the other: during a reload a worker holds two models. At
        # start-up each worker holds one, so all of them open it at the same time.
        self._reload_lock: AbstractContextManager[None] = (
            InterProcessLock() if watches else nullcontext()
        )
        self._stopped = threading.Event()
        self._backoff = Backoff(_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS)
        # The version that this worker serves, and the one that it tried to open last.
        self._opened: ServedVersion | None = None
        self._attempted: ServedVersion | None = None
        self._failures = 0
        self._logged_reason = ""
        # Why the served version could not be opened, as clients may see it.
        self._failure: str | None = None

    async def start(self) -> None:
        """Serve the first model, then watch for other versions until stop().

        Raises the error of the first attempt if no worker of this server was ever ready: the
        model cannot be served. Otherwise it retries, because gunicorn would stop the healthy
        workers, too, if this worker failed to start.
        """
        model = await asyncio.to_thread(self._next_model)
        if model is None:
            return
        self._serve(model)
        if self._watches:
            loop = asyncio.get_running_loop()
            # A daemon thread: the end of the process does not wait until a large model is open.
            threading.Thread(
                target=self._reload_until_stopped, args=(loop,), name="reloader", daemon=True
            ).start()

    def stop(self) -> None:
        """Open no more models."""
        self._stopped.set()

    def _reload_until_stopped(self, loop: asyncio.AbstractEventLoop) -> None:
        while (model := self._next_model()) is not None:
            loop.call_soon_threadsafe(self._serve, model)

    def _next_model(self) -> Model | None:
        """Wait until another version is to be served and return its model; None after stop()."""
        while not self._stopped.is_set():
            version = self._served_version.get()
            model = self._open(version) if self._is_due(version) else None
            if model is not None:
                return None if self._stopped.is_set() else model
            self._report(version)
            self._stopped.wait(_POLL_SECONDS)
        return None

    def _is_due(self, version: ServedVersion) -> bool:
        if self._opened and version.is_same_artifact(self._opened):
            return False
        is_retry = self._attempted and version.is_same_artifact(self._attempted)
        return not is_retry or self._backoff.is_due()

    def _open(self, version: ServedVersion) -> Model | None:
        """Return the model; None if it cannot be opened, and the last good model stays."""
        if not (self._attempted and version.is_same_artifact(self._attempted)):
            self._attempted, self._failures = version, 0
        try:
            with self._reload_lock if self._opened else nullcontext():
                model = self._open_model(version)
        except Exception as error:
            if not self._any_ready.get():
                raise
            self._record_failure(version, error)
            return None
        self._opened, self._failure = version, None
        return model

    def _record_failure(self, version: ServedVersion, error: Exception) -> None:
        self._failures += 1
        self._backoff.pause(self._failures)
        self._metrics.open_failures.add(1)
        # Clients may read this in /metadata. Only a contract's differences are safe to show: the
        # text of other errors may contain paths.
        reasons = (
            error.differences if isinstance(error, ContractMismatch) else [type(error).__name__]
        )
        self._failure = f"{version.version}: {'; '.join(reasons)}"
        reason = failure_reason(error)
        # Once per version and reason, not once per attempt.
        if self._failures == 1 or reason != self._logged_reason:
            logs.error("model_not_opened", version=version.version, reason=reason)
        self._logged_reason = reason

    def _report(self, version: ServedVersion) -> None:
        """Publish why this worker does not serve the version that it should, if so."""
        if self._opened is None:
            return  # A worker without a model is not degraded but not ready.
        if version.is_same_artifact(self._opened):
            self._failure = None
        self._batcher.degraded = self._failure or version.degraded
        self._metrics.degraded.set(self._batcher.degraded is not None)


def failure_reason(error: Exception) -> str:
    """Return why a model could not be opened, for the log: a bug of ours with its traceback."""
    if isinstance(error, ContractMismatch):
        return str(error)
    return "".join(traceback.format_exception(error))
