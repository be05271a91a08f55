"""Run the server: gunicorn as PID 1, uvicorn in its workers, no request lost at shutdown.

Files are verified before the fork (create_app). Each worker opens its own session and runs the
golden rows before it accepts a request.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from uvicorn_worker import UvicornWorker

from artifact.redact import redact
from serving import logs
from serving.errors import StartupError
from serving.http.headers import CLOSE
from serving.server import fast_start
from serving.server.app import App, create_app
from serving.server.http_protocol import HttpProtocol
from serving.settings import Settings
from serving.workers.container import shared_memory
from serving.workers.forked import ForkedTask
from serving.workers.model_source import ModelSource
from serving.workers.shared_value import SharedValue

_FAILURE_BYTES = 1 << 17
# JSON escapes a character with up to 6 bytes (\u001b).
_MAX_FAILURE_CHARACTERS = _FAILURE_BYTES // 6
# Clients pool idle connections for about a minute. gunicorn's default of 2 s would close them
# while a request is on its way.
_KEEP_ALIVE_SECONDS = 75
_HEARTBEAT_SECONDS = 1
_BACKLOG = 2048
# gunicorn ends hung workers after graceful_timeout; uvicorn cancels their requests before that.
_KILL_MARGIN_SECONDS = 2
# The pause before an alias watcher that ended is started again.
_WATCHER_PAUSE_SECONDS = 1.0
# Blocked during a fork, see Master.spawn_worker.
_BLOCKED_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
_POLL_SECONDS = 0.02
# At shutdown, clients that reuse a connection get this long to send one more request, whose
# response tells them that the connection closes.
_LAST_REQUESTS_SECONDS = 0.5


def serve(settings: Settings, source: ModelSource) -> int:
    """Serve the model until TERM, in this process as gunicorn's master; return its exit status.

    Raises StartupError if there is no artifact or a port is taken, and ContractMismatch if the
    artifact differs from its contract.
    """
    directory = source.directory()
    main = listen(settings.host, settings.port, "PORT")
    sockets, ports = [main], {"port": main.getsockname()[1]}
    if settings.management_port is not None:
        management = listen(settings.host, settings.management_port, "MANAGEMENT_PORT")
        sockets.append(management)
        ports["management_port"] = management.getsockname()[1]
    # A port of 0 has become a real one.
    settings = settings.model_copy(update=ports)
    app = create_app(settings, directory, watches=source.watch is not None)
    application = Application(settings, app, sockets, source)
    try:
        Master(application).run()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    else:
        status = 0
    logs.info("stopped", status=status)
    return status


def listen(host: str, port: int, setting: str) -> socket.socket:
    """Return a listening socket. Raises StartupError that names the setting and the reason."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            fast_start.host_without_idna(host),
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # With SO_REUSEADDR two servers may bind the same port. Only one may listen on it, so
        # listen here, where the error can name the setting.
        bound.listen(_BACKLOG)
    except socket.gaierror as error:
        raise StartupError(f"HOST: cannot listen on {host}: {error.strerror}") from None
    except OSError as error:
        raise StartupError(
            f"{setting}: cannot listen on {host}:{port}: {error.strerror or error}"
        ) from None
    return bound


class Application(BaseApplication):  # type: ignore[misc] # gunicorn has no types
    """The App with gunicorn's configuration for it."""

    def __init__(
        self, settings: Settings, app: App, sockets: list[socket.socket], source: ModelSource
    ) -> None:
        self.mode = settings.mode
        self.source = source
        self._settings = settings
        self._app = app
        self._binds = [f"fd://{bound.detach()}" for bound in sockets]
        # Why the first worker that failed could not serve the model; the master prints it.
        self.failure = SharedValue("", size_bytes=_FAILURE_BYTES)
        super().__init__()

    def load_config(self) -> None:
        """Set what differs from gunicorn's defaults."""
        options: dict[str, Any] = {
            "bind": self._binds,
            "workers": self._settings.workers,
            "worker_class": Worker,
            "logger_class": PlainLogger,
            "preload_app": True,
            "graceful_timeout": self._settings.drain_seconds,
            "keepalive": _KEEP_ALIVE_SECONDS,
            # gunicorn would write its control socket to $HOME, which is read-only in a container.
            "control_socket_disable": True,
            "worker_tmp_dir": shared_memory(),
            "when_ready": self._log_addresses,
            "child_exit": _release_slot,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> App:
        """Return the App, which exists already: workers then share its memory."""
        fast_start.finish()
        return self._app

    def _log_addresses(self, _: Arbiter) -> None:
        urls = {"url": _url(self._settings.host, self._settings.port)}
        if self._settings.management_port is not None:
            urls["management_url"] = _url(self._settings.host, self._settings.management_port)
        logs.info("listening", mode=self._settings.mode, **urls)


class Master(Arbiter):  # type: ignore[misc] # gunicorn has no types
    """gunicorn's master. It also keeps the alias watcher running, and explains a failed start.

    Private interface of gunicorn, checked with 27.0.1: Arbiter.manage_workers, spawn_worker,
    stop, and halt are overridden, WORKER_BOOT_ERROR and APP_LOAD_ERROR are read and set. gunicorn
    offers no hook for a process beside its workers, for code around the fork, or for the end
    after a failed start.
    """

    _watcher: ForkedTask | None = None
    _watcher_started = 0.0

    def __init__(self, app: Application) -> None:
        # The slot of the counters in which each worker counts, by its pid.
        self._slots: dict[int, int] = {}
        super().__init__(app)

    def manage_workers(self) -> None:
        """Keep the workers and the alias watcher running; gunicorn calls this every second."""
        self._manage_watcher()
        super().manage_workers()

    def stop(self, graceful: bool = True) -> None:  # noqa: FBT001, FBT002 - gunicorn's signature
        """Stop the workers. The watcher is killed first, so that no worker reloads any more."""
        if self._watcher:
            self._watcher.kill()
        super().stop(graceful)

    def _manage_watcher(self) -> None:
        source, now = self.app.source, time.monotonic()
        if source.watch is None or now < self._watcher_started + _WATCHER_PAUSE_SECONDS:
            return
        if self._watcher is not None:
            if not self._watcher.is_done():
                return
            self._watcher.close()
            self._watcher = None
        self._watcher_started = now
        try:
            self._watcher = ForkedTask(partial(source.watch, self.app.callable.served_version))
        except OSError as error:  # The workers keep serving the version that they have.
            logs.error("alias_watcher_not_started", reason=error.strerror)
        else:
            source.release()

    def spawn_worker(self) -> Any:
        """Fork a worker with TERM, INT, and QUIT blocked, and with a slot of its own.

        Block TERM during the fork: a signal sent before the child installs its handler is
        delivered afterwards. The child would otherwise run the master's handler, which only puts
        the signal into a queue that the child never reads.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED_SIGNALS)
        slot = self.app.callable.counters.claim_slot()
        try:
            pid: int = super().spawn_worker()
        except SystemExit as error:
            # This is the child at its end. Exit here: the exception would otherwise run through
            # serve(), which logs "stopped" for the master.
            status = error.code if isinstance(error.code, int) else 1
            if status == Arbiter.WORKER_BOOT_ERROR and self.app.callable.any_ready.get():
                # With this status gunicorn would stop the healthy workers, too.
                status = 1
            os._exit(status)
        else:
            self._slots[pid] = slot
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED_SIGNALS)

    def release_slot(self, pid: int) -> None:
        """Free the slot of a worker that ended; the next worker continues its counters."""
        if (slot := self._slots.pop(pid, None)) is not None:
            self.app.callable.counters.release_slot(slot)

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """Stop the server. After a failed start, print the reason that the worker reported."""
        failure = self.app.failure.get()
        # Stopping reaps the other workers. If one of them failed as well, gunicorn would raise
        # HaltServer again, inside of this stop. No exit status equals -1.
        self.WORKER_BOOT_ERROR = self.APP_LOAD_ERROR = -1
        if exit_status == 0 or not failure:
            super().halt(reason, exit_status)
        self.stop()
        print(f"{self.app.mode} does not start. {redact(failure)}", file=sys.stderr)  # noqa: T201
        sys.exit(exit_status)


class PlainLogger(Logger):  # type: ignore[misc] # gunicorn has no types
    """gunicorn's logger without its own format, handlers, and level: serving.logs sets them."""

    def setup(self, cfg: Any) -> None:
        """Pass every record on to the root logger.

        Private interface of gunicorn, checked with 27.0.1: Logger.setup is overridden and sets
        the attributes that Logger reads later: cfg, error_log, loglevel, and
        _access_log_enabled. gunicorn's own setup always installs a handler with its own format.
        """
        self.cfg = cfg
        self._access_log_enabled = False
        self.loglevel = self.error_log.getEffectiveLevel()
        self.error_log.propagate = True


class Worker(UvicornWorker):  # type: ignore[misc] # uvicorn_worker has no types
    """uvicorn in a gunicorn worker, with the reason of a failed start and a complete drain."""

    CONFIG_KWARGS = {  # noqa: RUF012 - uvicorn_worker declares it so
        "loop": "uvloop",
        "lifespan": "on",
        "interface": "asgi3",
        "ws": "none",
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
    }

    _server: "DrainingServer | None" = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Private interface of uvicorn_worker and uvicorn, checked with 0.4.0 and 0.54.0:
        # self.config is a uvicorn.Config, and its attributes http, timeout_notify, and
        # timeout_graceful_shutdown may be set until Config.load(). UvicornWorker computes two of
        # them from gunicorn's settings, and CONFIG_KWARGS is fixed when the class is created.
        self.config.http = HttpProtocol
        self.config.timeout_notify = _HEARTBEAT_SECONDS
        # uvicorn answers the remaining requests with an error before gunicorn kills the worker.
        self.config.timeout_graceful_shutdown = max(
            1, self.cfg.graceful_timeout - _KILL_MARGIN_SECONDS
        )
        uvicorn_log = logging.getLogger("uvicorn.error")
        uvicorn_log.propagate = True
        # uvicorn's warnings are about clients' mistakes, which are no problem of this server.
        uvicorn_log.setLevel(logging.ERROR)

    def init_signals(self) -> None:
        """Install the handlers, then deliver the signals that were blocked during the fork."""
        super().init_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED_SIGNALS)

    def handle_usr1(self, *_: object) -> None:
        """Keep serving, but close connections after their next response: TERM will follow.

        A preStop hook sends USR1 while the endpoints are removed from the load balancers.
        """
        if self._server:
            self._server.close_connections_after_response()

    async def _serve(self) -> None:
        """Run a DrainingServer in place of uvicorn's Server.

        Private interface of uvicorn_worker and gunicorn, checked with 0.4.0 and 27.0.1:
        UvicornWorker._serve is overridden, because it creates its Server itself. It uses
        Worker.wsgi, sockets, cfg, app, ppid, and notify.
        """
        app: App = self.wsgi
        self.config.app = app
        server = DrainingServer(self.config, self.cfg.graceful_timeout)
        self._server = server
        # gunicorn's master passes INT on to its workers as QUIT.
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, server.stop)
        heartbeat = asyncio.create_task(self._beat_until_started(server))
        try:
            await server.serve(sockets=self.sockets)
        except SystemExit:
            if app.startup_failure:
                self.app.failure.set(app.startup_failure[:_MAX_FAILURE_CHARACTERS])
            raise
        finally:
            heartbeat.cancel()
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    async def callback_notify(self) -> None:
        """Tell the master that this worker is alive; stop if the master is gone.

        Workers of a killed master would keep the port, and an old model, for ever.
        """
        self.notify()
        if os.getppid() != self.ppid and self._server:
            self._server.stop()

    async def _beat_until_started(self, server: uvicorn.Server) -> None:
        """Send heartbeats while the model is opened; uvicorn sends them only after its start.

        gunicorn kills a worker without a heartbeat, and a large model may take longer to open.
        """
        while not server.started:
            self.notify()
            await asyncio.sleep(_HEARTBEAT_SECONDS)


class DrainingServer(uvicorn.Server):
    """A uvicorn server that exits at once before it has started, and drains after that.

    Private interface of uvicorn, checked with 0.54.0: Server.handle_exit and shutdown are
    overridden; started, should_exit, server_state.connections, server_state.default_headers, and
    Config.encoded_headers are used. uvicorn has no option for a signal during the start, and its
    shutdown closes idle connections without telling the clients first.
    """

    def __init__(self, config: uvicorn.Config, drain_seconds: int) -> None:
        super().__init__(config)
        self.drain_seconds = drain_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle TERM also while the model is being opened."""
        if self.started:
            super().handle_exit(sig, frame)
        self.stop()

    def stop(self) -> None:
        """Begin to drain; before the server has started, exit at once."""
        if not self.started:
            os._exit(0)
        self.should_exit = True

    def close_connections_after_response(self) -> None:
        """Send `Connection: close` with every response; still accept new connections."""
        if CLOSE in self.config.encoded_headers:
            return
        # uvicorn rebuilds default_headers from encoded_headers each second. Set both, so that
        # the header is sent at once.
        self.config.encoded_headers.append(CLOSE)
        self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain: give each open connection time for a last request, then close it."""
        self.close_connections_after_response()
        deadline = time.monotonic() + min(_LAST_REQUESTS_SECONDS, self.drain_seconds / 10)
        while self.server_state.connections and time.monotonic() < deadline:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(_POLL_SECONDS)
        await super().shutdown(sockets)


def _release_slot(master: Master, worker: Worker) -> None:
    master.release_slot(worker.pid)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
