"""The application: hot paths and probes at once, and FastAPI for everything else.

Made once by server.py before the fork; each worker opens the session when its server starts.
FastAPI (documented.py) is imported by the first request for what it has.
"""

import asyncio
import contextlib
import threading
import time
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from artifact.contract import Contract, ContractMismatch
from artifact.software import other_versions
from artifact.verify import verify_files
from serving import logs
from serving.errors import RequestError
from serving.http import infer, probes
from serving.http.endpoint import Codec, Endpoint
from serving.http.headers import REQUEST_ID
from serving.http.infer import Infer
from serving.http.inventory import Inventory
from serving.http.predict import Predict
from serving.http.probes import send_error
from serving.http.request_log import RequestContext, RequestRecorder
from serving.inference.batcher import Runner
from serving.inference.codecs.rows import Rows
from serving.inference.model import Model
from serving.inference.reloader import Reloader
from serving.metrics.counters import Counters
from serving.metrics.metrics import Metrics
from serving.settings import Settings
from serving.workers.model_source import ServedVersion
from serving.workers.shared_value import SharedValue

# For workers that are being replaced.
_SPARE_ROWS = 8
_PAUSE_SECONDS = 5.0
_LOOK_SECONDS = 0.1
_LATER_SECONDS = 2.0
# What FastAPI answers, known before it is imported: what counts is set before the fork.
DOCUMENTED = (
    "/", "/page/{name}", "/docs", "/openapi.json", "/metadata", "/label", "/predict/test",
    "/predict/test/label", "/v2", "/v2/models/{name}", "/v2/models/{name}/ready",
    "/v2/models/{name}/versions/{version}", "/v2/models/{name}/versions/{version}/ready",
)  # fmt: skip
_OTHER = "other"


class App:
    """An ASGI application that looks at the path before anything else.

    current: what all its workers serve. counters: where they count. any_ready: whether one
    of them was ready once. startup_failure: why the model cannot be served, as text, once
    that is known.
    """

    def __init__(
        self, settings: Settings, contract: Contract, directory: Path, *, follows: bool
    ) -> None:
        self._first = ServedVersion(contract.version, str(directory), polled_at=time.time())
        self.current = SharedValue(self._first)
        self.any_ready = SharedValue(False)  # noqa: FBT003 - it is the value
        self.startup_failure: str | None = None
        self._settings = settings
        self._verified = contract
        self.counters = Counters(settings.workers + _SPARE_ROWS)
        self._metrics = Metrics(self.counters, self.current if follows else None)
        self._runner = Runner(self._metrics, max_rows=settings.max_batch_rows)
        self._reloader = None
        if follows:
            self._reloader = Reloader(
                self.current, self._runner, self._metrics, self._open, self._serve
            )
        self._hot = {
            "/predict": self._endpoint("/predict", Predict(Rows.encode, needs_labels=False)),
            "/predict/label": self._endpoint(
                "/predict/label", Predict(Rows.encode_labels, needs_labels=True)
            ),
        }
        self._infer = self._endpoint(infer.ENDPOINT, Infer())
        health = probes.health_probes(self._runner)
        operations = probes.operations_probes(self._metrics, Inventory(settings, self._runner))
        managed = [*health, *operations]
        public = health if settings.management_port is not None else managed
        self._public_probes = {probe.path: probe for probe in public}
        self._management_probes = {probe.path: probe for probe in managed}
        self._documented: asyncio.Task[ASGIApp] | None = None
        self._later: asyncio.TimerHandle | None = None
        counted = (_OTHER, *DOCUMENTED, *self._management_probes)
        self._recorders = {path: self._recorder(path) for path in counted}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer hot paths and probes at once and leave the others to FastAPI."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif hot := self.hot(scope):
            await hot(scope, receive, send)
        else:
            await self._counted(self._cold, scope, receive, send)

    def hot(self, scope: Scope) -> Endpoint[Any] | None:
        """Return the endpoint that answers a request, None where it is not hot."""
        path = scope["path"]
        if (hot := self._hot.get(path)) is None and infer.is_infer(path):
            hot = self._infer
        return None if hot and self._is_for_management(scope) else hot

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the session in this process, off the event loop so that signals are heard.

        Raises what is wrong with the model; startup_failure says it.
        """
        while (served := await self._begin()) is None:
            await self._pause()
        self.any_ready.set(True)
        if self._reloader:
            self._reloader.start(served)
        yield
        if self._reloader:
            self._reloader.stop()
        self._runner.close()

    def _endpoint(self, name: str, codec: Codec[Any]) -> Endpoint[Any]:
        limit = self._settings.max_body_bytes
        return Endpoint(codec, self._runner, self._recorder(name), max_body_bytes=limit)

    def _is_for_management(self, scope: Scope) -> bool:
        port = self._settings.management_port
        return port is not None and scope["server"][1] == port

    def _recorder(self, name: str) -> RequestRecorder:
        return RequestRecorder(self._metrics.endpoint(name), access_log=self._settings.access_log)

    async def _counted(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Note a request that is not hot; a path that is none of ours is `other`."""
        self._recorders[_OTHER].started()
        request, status = RequestContext(scope), 500

        async def noting_the_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (REQUEST_ID, request.request_id)]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await app(scope, receive, noting_the_status)
        finally:
            # A path with a name in it is counted as its route.
            route = getattr(scope.get("route"), "path", None)
            path = str(route or scope["path"])
            self._recorders.get(path, self._recorders[_OTHER]).finished(request, status)

    async def _cold(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a probe, or have FastAPI answer; the management port has probes only."""
        managed, path = self._is_for_management(scope), scope["path"]
        if probe := (self._management_probes if managed else self._public_probes).get(path):
            await probe(scope, receive, send)
        elif managed:
            await send_error(send, RequestError(404, f"{path}: no such path"))
        else:
            documented = await self._documented_app(send)
            await documented(scope, receive, send)

    async def _documented_app(self, send: Send) -> ASGIApp:
        if self._documented is None:
            self._documented = asyncio.create_task(asyncio.to_thread(self._document))
        try:
            return await asyncio.shield(self._documented)
        except Exception:
            self._documented = None  # the next request tries again
            await send_error(send, RequestError(500, "internal error"))
            raise  # uvicorn logs it

    def _document(self) -> ASGIApp:
        from serving.api.fastapi_app import FastAPIApp  # noqa: PLC0415 - a start does not wait for it

        return FastAPIApp(self._runner, self._public_probes.values())

    async def _begin(self) -> ServedVersion | None:
        """Serve what is current and return it; None when that failed and is to be tried again.

        Raises what is wrong while no worker was ever ready. After that gunicorn would end
        the healthy ones, too.
        """
        current = self.current.get()
        try:
            model = await asyncio.to_thread(self._open, current)
        except Exception as error:
            mismatch = isinstance(error, ContractMismatch)
            failure = str(error) if mismatch else traceback.format_exc()
            if not self.any_ready.get():
                self.startup_failure = failure
                raise
            self._metrics.open_failures.add(1)
            if failure != self.startup_failure:
                logs.error("model_not_opened", version=current.version, reason=failure)
            self.startup_failure = failure
            return None
        self._serve(model)
        return current

    async def _pause(self) -> None:
        """Wait before another try, no longer than until something else is current."""
        before, ends = self.current.get().reloads, time.monotonic() + _PAUSE_SECONDS
        while self.current.get().reloads == before and time.monotonic() < ends:  # noqa: ASYNC110 - set by another process
            await asyncio.sleep(_LOOK_SECONDS)

    def _open(self, current: ServedVersion) -> Model:
        """Open what is current; what was verified before the fork is not verified again."""
        directory, contract = Path(current.directory), self._verified
        if self.any_ready.get() or not current.is_same_artifact(self._first):
            contract = verify_files(directory, self._settings.contract_sha256)
        return Model.open(directory, contract, max_rows=self._settings.max_batch_rows)

    def _serve(self, model: Model) -> None:
        """Answer with this model from now on."""
        contract = model.contract
        self._runner.serve(model)
        self._metrics.model_loaded(self._settings.mode, contract, model.load_seconds)
        logs.info(
            "model_loaded",
            model=contract.name,
            version=contract.version,
            sha256=contract.model.sha256,
            seconds=round(model.load_seconds, 4),
        )
        if self._later:
            self._later.cancel()
        # It takes as long as opening a small model, and the first requests are waiting.
        ready = threading.Thread(target=_get_ready, args=(contract,), daemon=True)
        self._later = asyncio.get_running_loop().call_later(_LATER_SECONDS, ready.start)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        """Run while the server does; a model that cannot be served is said as text."""
        await receive()
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self.running())
            except Exception:  # noqa: BLE001 - the server says it, and ends
                message = self.startup_failure or traceback.format_exc()
                await send({"type": "lifespan.startup.failed", "message": message})
                return
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


def create_app(settings: Settings, model_dir: Path, *, follows: bool = False) -> App:
    """Return the application that serves the artifact in model_dir, its files verified.

    follows: whether somebody may make another artifact the app's current one. Opens no
    session: that is done by each process that runs the app's lifespan. Raises
    ContractMismatch with every difference when the files are not what their contract says.
    """
    contract = verify_files(model_dir, settings.contract_sha256)
    return App(settings, contract, model_dir, follows=follows)


def _get_ready(contract: Contract) -> None:
    """Do what the first scrape would wait for, and log what training ran on and this server not.

    The golden rows came out right all the same.
    """
    import serving.metrics.prometheus  # noqa: F401, PLC0415 - a start does not wait for it

    if found := other_versions(contract.origin.environment):
        logs.info("other_versions_than_in_training", **found)
