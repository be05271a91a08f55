"""Private interfaces of libraries that the server uses; each test names what an upgrade removed.

The comments beside their use say why they are used, and the version they were checked with.
"""

import asyncio
import importlib
import importlib.metadata
import inspect
import json
import logging
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httptools
import numpy as np
import pytest
from fastapi import FastAPI
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config as GunicornConfig
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker
from starlette.types import Message, Scope
from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState
from uvicorn_worker import UvicornWorker

from artifact.contract import read_contract
from serving.errors import RequestError
from serving.inference.model import Model
from tests.onnx_files import save_table
from tests.servers import ROWS, Start, connect, wait_until
from training.import_onnx import make_contract

# Functions that are overridden or called, with the parameters that are relied on.
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.data_received": ("self", "data"),
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.on_message_complete": ("self",),
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.send_400_response": ("self", "msg"),
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.shutdown": ("self",),
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol._start_asgi_task": (
        "self", "cycle", "app",
    ),
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol._should_upgrade": ("self",),
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol._unset_keepalive_if_required": (
        "self",
    ),
    "uvicorn.server:Server.handle_exit": ("self", "sig", "frame"),
    "uvicorn.server:Server.shutdown": ("self", "sockets"),
    "uvicorn.server:Server.serve": ("self", "sockets"),
    "uvicorn_worker:UvicornWorker._serve": ("self",),
    "uvicorn_worker:UvicornWorker.callback_notify": ("self",),
    "uvicorn_worker:UvicornWorker.init_signals": ("self",),
    "gunicorn.arbiter:Arbiter.manage_workers": ("self",),
    "gunicorn.arbiter:Arbiter.spawn_worker": ("self",),
    "gunicorn.arbiter:Arbiter.stop": ("self", "graceful"),
    "gunicorn.arbiter:Arbiter.halt": ("self", "reason", "exit_status"),
    "gunicorn.app.base:BaseApplication.load": ("self",),
    "gunicorn.app.base:BaseApplication.load_config": ("self",),
    "gunicorn.glogging:Logger.setup": ("self", "cfg"),
    "gunicorn.workers.base:Worker.notify": ("self",),
    "gunicorn.workers.base:Worker.handle_usr1": ("self", "sig", "frame"),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_the_server_overrides_or_calls_exists(name: str) -> None:
    module_name, path = name.split(":")
    module = importlib.import_module(module_name)
    package = importlib.metadata.packages_distributions()[module_name.split(".")[0]][0]
    version = f"{package} {importlib.metadata.version(package)}"

    try:
        function = attrgetter(path)(module)
    except AttributeError:
        pytest.fail(f"{version} has no {name} any more")

    assert tuple(inspect.signature(function).parameters) == FUNCTIONS[name], version


def protocol() -> HttpToolsProtocol:
    """A protocol as uvicorn creates it, in the middle of a request."""
    loop = asyncio.new_event_loop()
    created = HttpToolsProtocol(Config(Mock(), ws="none"), ServerState(), {}, _loop=loop)
    loop.close()
    created.on_message_begin()
    return created


@pytest.mark.parametrize(
    "name",
    [
        "app", "cycle", "flow", "headers", "loop", "parser", "scope", "tasks", "transport", "url",
    ],
)  # fmt: skip
def test_uvicorns_protocol_has_the_attribute(name: str) -> None:
    assert hasattr(protocol(), name)


def test_uvicorns_protocol_adds_the_method_to_the_scope_once_the_head_is_complete() -> None:
    """The server tells by it whether a connection is in the middle of a head."""
    assert "method" not in protocol().scope


@pytest.mark.parametrize(
    "name",
    [
        "body", "default_headers", "disconnected", "keep_alive", "more_body", "on_response",
        "response_complete", "response_started", "scope", "waiting_for_100_continue",
    ],
)  # fmt: skip
def test_uvicorns_cycle_has_the_attribute(name: str) -> None:
    parameters = inspect.signature(RequestResponseCycle).parameters
    cycle = RequestResponseCycle(**{parameter: Mock() for parameter in parameters})

    assert hasattr(cycle, name)


def test_uvicorns_flow_control_has_write_paused() -> None:
    flow = importlib.import_module("uvicorn.protocols.http.flow_control")

    async def create() -> Any:
        return flow.FlowControl(Mock())

    assert asyncio.run(create()).write_paused is False


def test_uvicorns_status_lines_are_complete() -> None:
    assert STATUS_LINE[200] == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "name",
    [
        "started", "should_exit", "server_state.connections", "server_state.tasks",
        "server_state.default_headers", "config.encoded_headers",
    ],
)  # fmt: skip
def test_uvicorns_server_has_the_attribute(name: str) -> None:
    attrgetter(name)(Server(Config(Mock())))


def test_uvicorns_default_headers_are_made_from_the_encoded_headers() -> None:
    """Draining adds `Connection: close` to the encoded headers."""
    server = Server(Config(Mock(), server_header=False))
    server.config.load()
    server.config.encoded_headers.append((b"connection", b"close"))

    asyncio.run(server.on_tick(0))

    assert (b"connection", b"close") in server.server_state.default_headers


def test_uvicorns_config_may_be_changed_before_it_is_loaded() -> None:
    config = Config(Mock())
    assert {"http", "timeout_notify", "timeout_graceful_shutdown"} <= set(vars(config))

    config.http = HttpToolsProtocol
    config.load()

    assert config.http_protocol_class is HttpToolsProtocol


def test_uvicorn_worker_has_options_in_config_kwargs_and_a_config() -> None:
    assert isinstance(UvicornWorker.CONFIG_KWARGS, dict)
    assert "self.config = Config(**config_kwargs)" in inspect.getsource(UvicornWorker.__init__)


@pytest.mark.parametrize("name", ["WORKER_BOOT_ERROR", "APP_LOAD_ERROR"])
def test_gunicorns_master_halts_at_the_exit_status(name: str) -> None:
    """The server sets both on its master, so gunicorn has to read them from the instance."""
    assert isinstance(getattr(Arbiter, name), int)
    assert f"exitcode == self.{name}" in inspect.getsource(Arbiter.reap_workers)


@pytest.mark.parametrize("name", ["ppid", "sockets", "app", "cfg", "wsgi"])
def test_gunicorns_worker_has_the_attribute(name: str) -> None:
    assert f"self.{name} = " in inspect.getsource(Worker)


@pytest.mark.parametrize("name", ["cfg", "error_log", "loglevel", "_access_log_enabled"])
def test_gunicorns_logger_has_the_attribute(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for logger in map(logging.getLogger, ("gunicorn.error", "gunicorn.access")):
        # It changes the loggers of this process: restore them afterwards.
        monkeypatch.setattr(logger, "propagate", logger.propagate)
        monkeypatch.setattr(logger, "level", logger.level)
        monkeypatch.setattr(logger, "handlers", logger.handlers[:])

    assert hasattr(Logger(GunicornConfig()), name)


@pytest.mark.parametrize(
    "name",
    [
        "bind", "child_exit", "control_socket_disable", "graceful_timeout", "keepalive",
        "logger_class", "preload_app", "when_ready", "worker_class", "worker_tmp_dir", "workers",
    ],
)  # fmt: skip
def test_gunicorn_has_the_setting(name: str) -> None:
    assert name in GunicornConfig().settings


def test_httptools_reports_where_the_head_of_an_upgrade_ends() -> None:
    head = b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    parser = httptools.HttpRequestParser(Mock(spec=[]))
    parser.set_dangerous_leniencies(lenient_data_after_close=True)

    with pytest.raises(httptools.HttpParserUpgrade) as error:
        parser.feed_data(head + b"more")

    assert error.value.args == (len(head),)


def test_fastapi_puts_the_route_into_the_scope() -> None:
    """Requests are counted by its path template."""
    app = FastAPI()
    app.get("/page/{name}")(lambda name: name)
    scope: Scope = {
        "type": "http", "method": "GET", "path": "/page/x", "headers": [], "query_string": b"",
    }  # fmt: skip

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(_: Message) -> None:
        pass

    asyncio.run(app(scope, receive, send))

    assert scope["route"].path == "/page/{name}"


@pytest.mark.parametrize("name", ["Fail", "InvalidArgument", "RuntimeException"])
def test_onnxruntime_capi_onnxruntime_pybind11_state_has_the_run_errors(name: str) -> None:
    """serving/inference/model.py converts them to status 400."""
    module = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")

    assert issubclass(getattr(module, name), Exception)


def test_onnxruntime_raises_its_private_errors_for_values_that_a_model_cannot_handle(
    tmp_path: Path,
) -> None:
    """An index outside of the table: a mistake of the client, so not status 500."""
    file = save_table(tmp_path / "table.onnx")
    artifact = Path(
        make_contract(
            onnx_file=file, name="table", version="1", store=tmp_path / "store", purpose="a test"
        )
    )
    model = Model.open(artifact, read_contract(artifact), max_rows=1)

    with pytest.raises(RequestError) as rejected:
        model.run({"index": np.array([99], np.int64)}, model.output_names)

    assert rejected.value.status == 400


# Logs each request that reaches the application through ASGI. Python imports a module of this
# name at start-up, so it is a real server that is observed.
SITECUSTOMIZE = """
import json, sys
from serving.server.app import App
call = App.__call__
async def log_and_call(self, scope, receive, send):
    if scope["type"] == "http":
        print(json.dumps({"event": "asgi", "path": scope["path"]}), file=sys.stderr, flush=True)
    await call(self, scope, receive, send)
App.__call__ = log_and_call
"""


@pytest.fixture
def observed(server: Start, tmp_path: Path) -> Callable[[], Any]:
    """Start a server that logs each request that reaches it through ASGI."""
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    root = Path(__file__).parent.parent.parent
    return lambda: server(PYTHONPATH=f"{tmp_path}:{root}").wait_until_ready()


def test_a_complete_request_takes_the_fast_path(observed: Callable[[], Any]) -> None:
    """Without it every request is still answered, only at a fraction of the speed."""
    body = json.dumps({"data": ROWS}).encode()
    head = b"POST %b HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n"
    predict, label = (head % (path, len(body)) for path in (b"/predict", b"/predict/label"))
    health = b"GET /health HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    running = observed()

    with connect(running.url) as connection, connection.makefile("rb") as stream:
        connection.sendall(predict + body + label + body + health)
        responses = stream.read()
    assert responses.count(b"HTTP/1.1 200 OK\r\n") == 3

    wait_until(lambda: "/health" in {line["path"] for line in running.events("asgi")})
    paths = [line["path"] for line in running.events("asgi")]
    assert [path for path in paths if path.startswith("/predict")] == []
