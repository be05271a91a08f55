"""The server: gunicorn as PID 1, uvicorn in its workers, no request lost at the end.

Started by process.py. Files are checked before the fork (create_app); each worker opens
the session and runs the golden rows before it takes a request.
"""

import asyncio
import gc
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
from serving.server.app import App, create_app
from serving.server.http_protocol import HttpProtocol
from serving.settings import Settings
from serving.workers.container import shared_memory
from serving.workers.forked import ForkedTask
from serving.workers.model_source import ModelSource
from serving.workers.shared_value import SharedValue

_FAILURE_BYTES = 1 << 17
_LONGEST_FAILURE = _FAILURE_BYTES // 6  # characters, as JSON at worst
# Clients pool connections for about a minute; gunicorn's 2 s would reset them under way.
_KEEP_ALIVE_SECONDS = 75
_HEARTBEAT_SECONDS = 1
_BACKLOG = 2048
# Before another follower is started where one ended.
_FOLLOWER_PAUSE_SECONDS = 1.0
# During a fork.
_HELD_BACK = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
_POLL_SECONDS = 0.02
# Clients that reuse connections get that long to send, and be told to connect elsewhere.
_LAST_REQUESTS_SECONDS = 0.5


def serve(settings: Settings, source: ModelSource) -> int:
    """Serve an artifact until TERM, as this very process; return its status.

    Raises StartupError when there is none or a port is taken, and ContractMismatch as
    create_app does.
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
    app = create_app(settings, directory, follows=source.watch is not None)
    application = Application(settings, app, sockets, source)
    try:
        Master(application).run()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    else:
        status = 0
    logs.info("stopped", status=status)
    return status


def listen(host: str, port: int, setting: str) -> socket.socket:
    """Return a listening socket. Raises StartupError that names the setting and the reason."""
    # For text Python loads the codec of international names, which takes 2 ms.
    name = host.encode() if host.isascii() else host
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # Two servers may bind one port; only one may listen.
        bound.listen(_BACKLOG)
    except socket.gaierror as error:
        raise StartupError(f"HOST: cannot listen on {host}: {error.strerror}") from None
    except OSError as error:
        raise StartupError(
            f"{setting}: cannot listen on {host}:{port}: {error.strerror or error}"
        ) from None
    return bound


class Application(BaseApplication):  # type: ignore[misc] # gunicorn has no types
    """The app with gunicorn's configuration for it."""

    def __init__(
        self, settings: Settings, app: App, sockets: list[socket.socket], source: ModelSource
    ) -> None:
        self.mode = settings.mode
        self.source = source
        self._settings = settings
        self._app = app
        self._binds = [f"fd://{bound.detach()}" for bound in sockets]
        # The first worker that cannot serve its model says why.
        self.failure = SharedValue("", size_bytes=_FAILURE_BYTES)
        super().__init__()

    def load_config(self) -> None:
        """Set what differs from gunicorn's defaults."""
        chosen: dict[str, Any] = {
            "bind": self._binds,
            "workers": self._settings.workers,
            "worker_class": Worker,
            "logger_class": PlainLogger,
            "preload_app": True,
            "graceful_timeout": self._settings.drain_seconds,
            "keepalive": _KEEP_ALIVE_SECONDS,
            # Its control socket would be written to $HOME.
            "control_socket_disable": True,
            "worker_tmp_dir": shared_memory(),
            "when_ready": self._say_where,
            "child_exit": _give_back_row,
        }
        for name, value in chosen.items():
            self.cfg.set(name, value)

    def load(self) -> App:
        """Return the app, which is there already: the fork then shares its memory."""
        # What there is now stays: no look at it again, which would unshare its memory.
        gc.freeze()
        gc.enable()
        return self._app

    def _say_where(self, _: Arbiter) -> None:
        urls = {"url": _url(self._settings.host, self._settings.port)}
        if self._settings.management_port is not None:
            urls["management_url"] = _url(self._settings.host, self._settings.management_port)
        logs.info("listening", mode=self._settings.mode, **urls)


class Master(Arbiter):  # type: ignore[misc] # gunicorn has no types
    """gunicorn's master, which says in the worker's words why a model cannot be served.

    It also keeps the process alive that follows the source of the model, if that may change.
    """

    _follower: ForkedTask | None = None
    _follower_started = 0.0

    def __init__(self, app: Application) -> None:
        # In which row of the counters each worker counts, by its pid.
        self._rows: dict[int, int] = {}
        super().__init__(app)

    def manage_workers(self) -> None:
        """Keep the workers and what they follow alive; called every second."""
        self._keep_following()
        super().manage_workers()

    def stop(self, graceful: bool = True) -> None:  # noqa: FBT001, FBT002 - gunicorn's signature
        """Stop; no model is swapped from now on."""
        if self._follower:
            self._follower.kill()
        super().stop(graceful)

    def _keep_following(self) -> None:
        source, now = self.app.source, time.monotonic()
        if source.watch is None or now < self._follower_started + _FOLLOWER_PAUSE_SECONDS:
            return
        if self._follower is not None:
            if not self._follower.is_done():
                return
            self._follower.close()
            self._follower = None
        self._follower_started = now
        try:
            self._follower = ForkedTask(partial(source.watch, self.app.callable.current))
        except OSError as error:  # of no harm to the workers
            logs.error("follower_not_started", reason=error.strerror)
        else:
            source.release()

    def spawn_worker(self) -> Any:
        """Fork with TERM held back: one that came before the child could heed it would be lost."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
        row = self.app.callable.counters.claim_slot()
        try:
            pid: int = super().spawn_worker()
        except SystemExit as ended:
            # The child's end: what the master does at its own end is not for the child.
            status = ended.code if isinstance(ended.code, int) else 1
            if status == Arbiter.WORKER_BOOT_ERROR and self.app.callable.any_ready.get():
                # For gunicorn that is a reason to end the healthy workers, too.
                status = 1
            os._exit(status)
        else:
            self._rows[pid] = row
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)

    def give_back_row(self, pid: int) -> None:
        """Let the next worker count on where one that ended did."""
        if (row := self._rows.pop(pid, None)) is not None:
            self.app.callable.counters.release_slot(row)

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """Stop, after a failed start with what the worker said last on stderr."""
        said = self.app.failure.get()
        # A second worker that fails would raise HaltServer again, out of the stop it began.
        self.WORKER_BOOT_ERROR = self.APP_LOAD_ERROR = -1
        if exit_status == 0 or not said:
            super().halt(reason, exit_status)
        self.stop()
        print(f"{self.app.mode} does not start. {redact(said)}", file=sys.stderr)  # noqa: T201
        sys.exit(exit_status)


class PlainLogger(Logger):  # type: ignore[misc] # gunicorn has no types
    """gunicorn's logger, leaving format and level to logs.py."""

    def setup(self, cfg: Any) -> None:
        """Hand every record up to the root logger."""
        self.cfg = cfg
        self._access_log_enabled = False
        self.loglevel = self.error_log.getEffectiveLevel()
        self.error_log.propagate = True


class Worker(UvicornWorker):  # type: ignore[misc] # uvicorn_worker has no types
    """uvicorn under gunicorn, which fails aloud and drains completely."""

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
        self.config.http = HttpProtocol
        self.config.timeout_notify = _HEARTBEAT_SECONDS
        # Before gunicorn's own limit, which kills.
        self.config.timeout_graceful_shutdown = max(1, self.cfg.graceful_timeout - 2)
        uvicorn_log = logging.getLogger("uvicorn.error")
        uvicorn_log.propagate = True
        # Its warnings are of clients' mistakes.
        uvicorn_log.setLevel(logging.ERROR)

    def init_signals(self) -> None:
        """Take the signals over, then let in what was held back during the fork."""
        super().init_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)

    def handle_usr1(self, *_: object) -> None:
        """Answer on, but send clients elsewhere: what stops this server is about to."""
        if self._server:
            self._server.send_clients_elsewhere()

    async def _serve(self) -> None:
        app: App = self.wsgi
        self.config.app = app
        server = DrainingServer(self.config, self.cfg.graceful_timeout)
        self._server = server
        # gunicorn's master passes INT on as QUIT.
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, server.stop)
        heartbeat = asyncio.create_task(self._beat_until_started(server))
        try:
            await server.serve(sockets=self.sockets)
        except SystemExit:
            if app.startup_failure:
                self.app.failure.set(app.startup_failure[:_LONGEST_FAILURE])
            raise
        finally:
            heartbeat.cancel()
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    async def callback_notify(self) -> None:
        """Tell the master that this worker lives; end when it is the master that does not."""
        self.notify()
        if os.getppid() != self.ppid and self._server:
            self._server.stop()

    async def _beat_until_started(self, server: uvicorn.Server) -> None:
        """Keep gunicorn from taking a worker that opens a large model for a hung one."""
        while not server.started:
            self.notify()
            await asyncio.sleep(_HEARTBEAT_SECONDS)


class DrainingServer(uvicorn.Server):
    """A server that ends at once before it has started, and answers what it began after."""

    def __init__(self, config: uvicorn.Config, drain_seconds: int) -> None:
        super().__init__(config)
        self.drain_seconds = drain_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Heed TERM while the model is being opened, too."""
        if self.started:
            super().handle_exit(sig, frame)
        self.stop()

    def stop(self) -> None:
        """Drain and end; at once where there is nothing to drain yet."""
        if not self.started:
            os._exit(0)
        self.should_exit = True

    def send_clients_elsewhere(self) -> None:
        """Close each connection with its next answer, which says so; accept new ones still."""
        if CLOSE in self.config.encoded_headers:
            return
        # uvicorn makes the second out of the first each second.
        self.config.encoded_headers.append(CLOSE)
        self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain: answers say that the connection closes, and it does."""
        self.send_clients_elsewhere()
        deadline = time.monotonic() + min(_LAST_REQUESTS_SECONDS, self.drain_seconds / 10)
        while self.server_state.connections and time.monotonic() < deadline:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(_POLL_SECONDS)
        await super().shutdown(sockets)


def _give_back_row(master: Master, worker: Worker) -> None:
    master.give_back_row(worker.pid)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
