"""What a request costs in this process: 64 connections at once, and no network under them.

Run as `python -m benchmarks.micro STORE` in a process of its own. Each application is behind the
HTTP protocol that it is served with; what is written goes nowhere.
"""

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from benchmarks.bench import CONNECTIONS
from benchmarks.load import Ask
from benchmarks.systems import ROWS, TENSORS

_TURNS = 100
_REPEATS = 9
_DATE = (b"date", b"Thu, 01 Jan 2026 00:00:00 GMT")


@dataclass(frozen=True)
class Served:
    """An application, the protocol that it is behind, and what it is asked."""

    app: Any
    ask: Ask
    protocol: type[HttpToolsProtocol] = HttpToolsProtocol


class Nowhere(asyncio.Transport):
    """A connection that nobody is at the other end of. answers: how many were written."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return an address."""
        return ("127.0.0.1", 8000) if name in {"sockname", "peername"} else default

    def write(self, data: Any) -> None:
        """Count the answers that are right."""
        self.answers += data.startswith(b"HTTP/1.1 200 ")

    def close(self) -> None:
        """Do nothing."""

    def is_closing(self) -> bool:
        """Return that it is open."""
        return False


def measure(store: Path) -> dict[str, list[float]]:
    """Return the microseconds of a request in each repeat, by what was asked."""
    return uvloop.run(_measure(store))


async def _measure(store: Path) -> dict[str, list[float]]:
    directory = store / "iris" / "1"
    os.environ["MODEL"] = str(directory / "model.onnx")
    from benchmarks.asgi_onnxruntime.server import app as bare  # noqa: PLC0415 - reads the environment
    from benchmarks.fastapi.server import app as fastapi  # noqa: PLC0415 - reads the environment
    from benchmarks.uvicorn_baseline.server import app as limit  # noqa: PLC0415 - reads the environment
    from model_in_image.source import ModelInImageSettings  # noqa: PLC0415 - last, as the others
    from serving.server.app import create_app  # noqa: PLC0415 - last, as the others
    from serving.server.http_protocol import HttpProtocol  # noqa: PLC0415 - last, as the others

    this = create_app(ModelInImageSettings(model_dir=directory), directory)
    served = {
        "limit": Served(limit, ROWS),
        "bare": Served(bare, ROWS),
        "this, /predict": Served(this, ROWS, HttpProtocol),
        "this, v2 infer": Served(this, TENSORS, HttpProtocol),
        "fastapi": Served(fastapi, ROWS),
    }
    found: dict[str, list[float]] = {name: [] for name in served}
    async with this.running():
        for at in range(-1, _REPEATS):
            for name, one in served.items():
                microseconds = await _microseconds(one)
                if at >= 0:  # the first repeat warms up
                    found[name].append(microseconds)
    return found


async def _microseconds(served: Served) -> float:
    config = Config(served.app, lifespan="off", ws="none", proxy_headers=False, log_config=None)
    config.load()
    state = ServerState()
    state.default_headers = [_DATE]
    protocols, transports = [], [Nowhere() for _ in range(CONNECTIONS)]
    for transport in transports:
        protocols.append(served.protocol(config, state, {}))
        protocols[-1].connection_made(transport)
    request = _request(served.ask)
    started = time.perf_counter()
    for _ in range(_TURNS):
        for protocol in protocols:
            protocol.data_received(request)
        while state.tasks:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0)
    seconds = time.perf_counter() - started
    for protocol, transport in zip(protocols, transports, strict=True):
        protocol.connection_lost(None)
        if transport.answers != _TURNS:
            raise RuntimeError(f"expected {_TURNS} times 200, got {transport.answers}")
    return seconds / _TURNS / CONNECTIONS * 1e6


def _request(ask: Ask) -> bytes:
    head = f"{ask.method} {ask.path} HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n"
    head += f"Content-Type: {ask.content_type}\r\nContent-Length: {len(ask.body)}\r\n\r\n"
    return head.encode() + ask.body


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))  # noqa: T201 - it is the result
