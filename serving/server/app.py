"""The ASGI application: predictions and probes directly, everything else through FastAPI.

Created once before the fork, without a session. Each worker opens its own session in the
lifespan, because sessions do not survive a fork. FastAPI is imported by the first request that
needs it.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from artifact.contract import Contract
from artifact.software import other_versions
from artifact.verify import verify_files
from serving import logs
from serving.errors import RequestError
from serving.http import infer, probes
from serving.http.endpoint import Endpoint, Operation
from serving.http.headers import REQUEST_ID
from serving.http.infer import InferOperation
from serving.http.inventory import Inventory
from serving.http.predict import PredictOperation
from serving.http.probes import send_error
from serving.http.request_log import RequestContext, RequestRecorder
from serving.inference.batcher import Batcher
from serving.inference.codecs.rows import RowsCodec
from serving.inference.model import Model
from serving.inference.reloader import Reloader, failure_reason
from serving.metrics.counters import Counters
from serving.metrics.metrics import Metrics
from serving.settings import Settings
from serving.workers.model_source import ServedVersion
from serving.workers.shared_value import SharedValue

# While a worker is replaced, the old and the new process count at the same time.
_SPARE_SLOTS = 8
# Work that delays the first requests starts this long after the model is served.
_BACKGROUND_IMPORT_SECONDS = 2.0
# Paths served by FastAPI. Listed by hand because counters are allocated before the fork and
# FastAPI is imported after it; a test compares the list with the routes.
FASTAPI_PATHS = (
    "/", "/page/{name}", "/docs", "/openapi.json", "/metadata", "/label", "/predict/test",
    "/predict/test/label", "/v2", "/v2/models/{name}", "/v2/models/{name}/ready",
    "/v2/models/{name}/versions/{version}", "/v2/models/{name}/versions/{version}/ready",
)  # fmt: skip
_OTHER_PATHS = "other"


class App:
    """The application of one server. Several in one process share nothing.

    watches: whether another process may change the served version.
    """

    def __init__(
        self, settings: Settings, contract: Contract, directory: Path, *, watches: bool
    ) -> None:
        self._first = ServedVersion(contract.version, str(directory), polled_at=time.time())
        # What all workers of this server have to serve.
        self.served_version = SharedValue(self._first)
        # Whether any worker of this server was ever ready.
        self.any_ready = SharedValue(False)  # noqa: FBT003 - the value
        # Why the model cannot be served, for the operator; set when the start fails.
        self.startup_failure: str | None = None
        # Where the workers count; allocated before the fork, so that one can report for all.
        self.counters = Counters(settings.workers + _SPARE_SLOTS)
        self._settings = settings
        self._verified = contract
        self._metrics = Metrics(self.counters, self.served_version if watches else None)
        self._batcher = Batcher(self._metrics, max_rows=settings.max_batch_rows)
        self._reloader = Reloader(
            self.served_version,
            any_ready=self.any_ready,
            batcher=self._batcher,
            metrics=self._metrics,
            open_model=self._open,
            serve=self._serve,
            watches=watches,
        )
        self._fast_paths = {
            "/predict": self._endpoint(
                "/predict", PredictOperation(RowsCodec.encode, needs_labels=False)
            ),
            "/predict/label": self._endpoint(
                "/predict/label", PredictOperation(RowsCodec.encode_labels, needs_labels=True)
            ),
        }
        self._infer = self._endpoint(infer.ENDPOINT, InferOperation())
        health = probes.health_probes(self._batcher)
        operations = probes.operations_probes(self._metrics, Inventory(settings, self._batcher))
        management = [*health, *operations]
        public = health if settings.management_port is not None else management
        self._public_probes = {probe.path: probe for probe in public}
        self._management_probes = {probe.path: probe for probe in management}
        self._fastapi: asyncio.Task[ASGIApp] | None = None
        self._background_import: asyncio.TimerHandle | None = None
        counted = (_OTHER_PATHS, *FASTAPI_PATHS, *self._management_probes)
        self._recorders = {path: self._recorder(path) for path in counted}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or the lifespan, as an ASGI application."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif endpoint := self.fast_path(scope):
            await endpoint(scope, receive, send)
        else:
            await self._record(self._probe_or_fastapi, scope, receive, send)

    def fast_path(self, scope: Scope) -> Endpoint[Any] | None:
        """Return the endpoint that answers the request without FastAPI; None for other paths."""
        path = scope["path"]
        endpoint = self._fast_paths.get(path)
        if endpoint is None and infer.is_infer(path):
            endpoint = self._infer
        return None if endpoint and self._is_on_management_port(scope) else endpoint

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the model in this process, and serve it until the end of the `with`.

        Raises the error if the model cannot be served; startup_failure then has its text.
        """
        try:
            await self._start()
            yield
        finally:
            self._reloader.stop()
            self._batcher.close()

    async def _start(self) -> None:
        try:
            await self._reloader.start()
        except Exception as error:
            self.startup_failure = failure_reason(error)
            raise
        self.any_ready.set(True)

    def _endpoint(self, name: str, operation: Operation[Any]) -> Endpoint[Any]:
        limit = self._settings.max_body_bytes
        return Endpoint(operation, self._batcher, self._recorder(name), max_body_bytes=limit)

    def _recorder(self, name: str) -> RequestRecorder:
        return RequestRecorder(self._metrics.endpoint(name), access_log=self._settings.access_log)

    def _is_on_management_port(self, scope: Scope) -> bool:
        port = self._settings.management_port
        return port is not None and scope["server"][1] == port

    async def _record(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request that is not on the fast path; count it, and add its id."""
        self._recorders[_OTHER_PATHS].started()
        request, status = RequestContext(scope), 500

        async def send_with_request_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (REQUEST_ID, request.request_id)]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await app(scope, receive, send_with_request_id)
        finally:
            # Counting by the template of the route, /page/{name}, keeps the number of time series
            # fixed; unknown paths are counted as `other`. Private interface of FastAPI, checked
            # with 0.165.0: scope["route"] is the route, whose template has no other source here.
            route = getattr(scope.get("route"), "path", None)
            path = str(route or scope["path"])
            self._recorders.get(path, self._recorders[_OTHER_PATHS]).finished(request, status)

    async def _probe_or_fastapi(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a probe, or pass the request to FastAPI; the management port has only probes."""
        is_management, path = self._is_on_management_port(scope), scope["path"]
        served = self._management_probes if is_management else self._public_probes
        if probe := served.get(path):
            await probe(scope, receive, send)
        elif is_management:
            await send_error(send, RequestError(404, f"{path}: no such path"))
        else:
            fastapi = await self._fastapi_app(send)
            await fastapi(scope, receive, send)

    async def _fastapi_app(self, send: Send) -> ASGIApp:
        """Return the FastAPI application. Sends a 500 before it raises."""
        if self._fastapi is None:
            self._fastapi = asyncio.create_task(asyncio.to_thread(self._create_fastapi_app))
        try:
            # Shielded: a client that disconnects must not cancel the import for the others.
            return await asyncio.shield(self._fastapi)
        except Exception:
            self._fastapi = None  # The next request tries again.
            await send_error(send, RequestError(500, "internal error"))
            raise  # uvicorn logs it

    def _create_fastapi_app(self) -> ASGIApp:
        from serving.api.fastapi_app import FastAPIApp  # noqa: PLC0415 - not imported at start-up

        return FastAPIApp(self._batcher, self._public_probes.values())

    def _open(self, version: ServedVersion) -> Model:
        """Open a version. The files that were verified before the fork are not read again."""
        directory, contract = Path(version.directory), self._verified
        # A worker that replaces another one starts later, when the files may have changed.
        if self.any_ready.get() or not version.is_same_artifact(self._first):
            contract = verify_files(directory, self._settings.contract_sha256)
        return Model.open(directory, contract, max_rows=self._settings.max_batch_rows)

    def _serve(self, model: Model) -> None:
        """Use this model for all requests from now on."""
        contract = model.contract
        self._batcher.serve(model)
        self._metrics.model_loaded(self._settings.mode, contract, model.load_seconds)
        logs.info(
            "model_loaded",
            model=contract.name,
            version=contract.version,
            sha256=contract.model.sha256,
            seconds=round(model.load_seconds, 4),
        )
        if self._background_import:
            self._background_import.cancel()
        # It takes as long as opening a small model, and the first requests are waiting.
        thread = threading.Thread(target=_prepare_scrape, args=(contract,), daemon=True)
        loop = asyncio.get_running_loop()
        self._background_import = loop.call_later(_BACKGROUND_IMPORT_SECONDS, thread.start)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        """Serve the model while the server runs; report a failed start as text."""
        await receive()
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self.running())
            except Exception as error:  # noqa: BLE001 - the server prints it and exits
                message = self.startup_failure or failure_reason(error)
                await send({"type": "lifespan.startup.failed", "message": message})
                return
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


def create_app(settings: Settings, model_dir: Path, *, watches: bool = False) -> App:
    """Return the application that serves the artifact in model_dir, with its files verified.

    watches: whether another process may change the served version. Opens no session: each
    process that runs the lifespan opens its own. Raises ContractMismatch with every difference
    between the files and their contract.
    """
    contract = verify_files(model_dir, settings.contract_sha256)
    return App(settings, contract, model_dir, watches=watches)


def _prepare_scrape(contract: Contract) -> None:
    """Import what the first scrape needs, and log libraries whose versions differ from training.

    Different versions are no error: the golden rows were reproduced.
    """
    import serving.metrics.prometheus  # noqa: F401, PLC0415 - not imported at start-up

    if differences := other_versions(contract.origin.environment):
        logs.info("other_versions_than_in_training", **differences)
