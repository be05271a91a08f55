"""Start servers on free ports, and talk to them byte by byte."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from release.local.server_process import ServerProcess

DATASETS = ("iris", "digits", "diabetes")
MODES = ("model_in_image", "model_load")
ROWS = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]

Start = Callable[..., ServerProcess]


def source(mode: str, directory: Path | str) -> dict[str, str]:
    """The setting that names the model of a mode."""
    return {{"model_in_image": "MODEL_DIR", "model_load": "MODEL_URI"}[mode]: str(directory)}


def start(mode: str, directory: Path | str, **settings: str) -> ServerProcess:
    """Start a server on free ports with nothing in its environment except these settings."""
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    return ServerProcess(
        mode, {"PORT": "0", **source(mode, directory), **settings}, environment=clean
    )


@contextmanager
def all_served(mode: str, artifacts: Mapping[str, Path]) -> Iterator[dict[str, ServerProcess]]:
    """A ready server for each artifact, by name; each must exit with status 0.

    All are stopped if one of them does not start.
    """
    with ExitStack() as stack:
        # First start all, then wait: they load at the same time.
        servers = {
            name: stack.enter_context(start(mode, directory))
            for name, directory in artifacts.items()
        }
        for server in servers.values():
            server.wait_until_ready()
        yield servers
        assert {name: server.stop() for name, server in servers.items()} == dict.fromkeys(
            servers, 0
        )


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Poll a condition until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.005)


def workers(url: str) -> set[int]:
    """The pids of the workers that answer, if there are only a few."""
    with httpx.Client(base_url=url, headers={"Connection": "close"}, timeout=20) as client:
        return {client.get("/inventory").json()["pid"] for _ in range(20)}


def connect(url: str) -> socket.socket:
    """A raw connection, to send a request in pieces."""
    address = urlsplit(url)
    return socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=20)


def wait_until_read(connection: socket.socket) -> None:
    """Wait until the server has read everything that was sent: its kernel holds no bytes."""
    own, peer = connection.getsockname()[1], connection.getpeername()[1]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        queues = {(row[1][-4:], row[2][-4:]): int(row[4].split(":")[1], 16) for row in rows}
        if queues.get((f"{peer:04X}", f"{own:04X}")) == 0:
            return
    raise TimeoutError
