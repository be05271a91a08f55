"""Starting a server as a test does, on free ports, and talking to it byte by byte."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from release.local.server_process import ServerProcess

DATASETS = ("iris", "digits", "diabetes")
MODES = ("model_in_image", "model_load")
ROWS = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]

Start = Callable[..., ServerProcess]


def source(mode: str, directory: Path | str) -> dict[str, str]:
    """The setting that names a mode's model."""
    return {{"model_in_image": "MODEL_DIR", "model_load": "MODEL_URI"}[mode]: str(directory)}


def start(mode: str, directory: Path | str, **settings: str) -> ServerProcess:
    """Start a server on free ports with nothing in its environment but these settings."""
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    return ServerProcess(
        mode, {"PORT": "0", **source(mode, directory), **settings}, environment=clean
    )


@contextmanager
def all_served(mode: str, artifacts: Mapping[str, Path]) -> Iterator[dict[str, ServerProcess]]:
    """A running server of a mode for each artifact, by its name; each must end well."""
    servers = {name: start(mode, directory) for name, directory in artifacts.items()}
    for one in servers.values():
        one.wait_until_ready()
    yield servers
    for one in servers.values():
        assert one.stop() == 0


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Return once a condition holds; it is looked at again and again."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.005)


def workers(url: str) -> set[int]:
    """The processes that answer, as long as they are few."""
    with httpx.Client(base_url=url, headers={"Connection": "close"}, timeout=20) as client:
        return {client.get("/inventory").json()["pid"] for _ in range(20)}


def connect(url: str) -> socket.socket:
    """A connection of the test's own, to send a request in pieces."""
    address = urlsplit(url)
    return socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=20)


def wait_until_read(connection: socket.socket) -> None:
    """Wait until the peer's kernel holds nothing unread of what was sent, so the server has it."""
    own, peer = connection.getsockname()[1], connection.getpeername()[1]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        queues = {(row[1][-4:], row[2][-4:]): int(row[4].split(":")[1], 16) for row in rows}
        if queues.get((f"{peer:04X}", f"{own:04X}")) == 0:
            return
    raise TimeoutError
