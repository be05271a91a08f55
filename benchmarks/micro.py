"""Measure the time per request without a network: 64 connections in one process.

Run as `python -m benchmarks.micro STORE` in a new process. Each application is called through
its HTTP protocol; responses are counted and discarded.
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
from benchmarks.load import RequestSpec
from benchmarks.systems import ROWS, TENSORS

_TURNS = 100
_REPEATS = 9
_DATE = (b"date", b"Thu, 01 Jan 2026 00:00:00 GMT")


@dataclass(frozen=True)
class MeasuredApp:
    """An application, its HTTP protocol, and the request to send."""

    app: Any
    request: RequestSpec
    protocol: type[HttpToolsProtocol] = HttpToolsProtocol


class CountingTransport(asyncio.Transport):
    """A transport without a peer that counts successful responses."""

    def __init__(self) -> None:
        super().__init__()
        self.responses = 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return an address."""
        return ("127.0.0.1", 8000) if name in {"sockname", "peername"} else default

    def write(self, data: Any) -> None:
        """Count a response with status 200."""
        self.responses += data.startswith(b"HTTP/1.1 200 ")

    def close(self) -> None:
        """Do nothing."""

    def is_closing(self) -> bool:
        """Return False: the connection stays open."""
        return False


def measure(store: Path) -> dict[str, list[float]]:
    """Return the microseconds per request in each repeat, by application."""
    return uvloop.run(_measure(store))


async def _measure(store: Path) -> dict[str, list[float]]:
    directory = store / "iris" / "1"
    os.environ["MODEL"] = str(directory / "model.onnx")
    from benchmarks.asgi_onnxruntime.server import app as asgi  # noqa: PLC0415 - reads the environment
    from benchmarks.fastapi.server import app as fastapi  # noqa: PLC0415 - reads the environment
    from benchmarks.uvicorn_baseline.server import app as baseline  # noqa: PLC0415 - reads the environment
    from model_in_image.source import ModelInImageSettings  # noqa: PLC0415 - like the others
    from serving.server.app import create_app  # noqa: PLC0415 - like the others
    from serving.server.http_protocol import HttpProtocol  # noqa: PLC0415 - like the others

    this = create_app(ModelInImageSettings(model_dir=directory), directory)
    apps = {
        "uvicorn_baseline": MeasuredApp(baseline, ROWS),
        "asgi_onnxruntime": MeasuredApp(asgi, ROWS),
        "this, /predict": MeasuredApp(this, ROWS, HttpProtocol),
        "this, v2 infer": MeasuredApp(this, TENSORS, HttpProtocol),
        "fastapi": MeasuredApp(fastapi, ROWS),
    }
    times: dict[str, list[float]] = {name: [] for name in apps}
    async with this.running():
        for at in range(-1, _REPEATS):
            for name, app in apps.items():
                microseconds = await _microseconds(app)
                if at >= 0:  # the first repeat warms up
                    times[name].append(microseconds)
    return times


async def _microseconds(measured: MeasuredApp) -> float:
    config = Config(measured.app, lifespan="off", ws="none", proxy_headers=False, log_config=None)
    config.load()
    state = ServerState()
    state.default_headers = [_DATE]
    protocols, transports = [], [CountingTransport() for _ in range(CONNECTIONS)]
    for transport in transports:
        protocols.append(measured.protocol(config, state, {}))
        protocols[-1].connection_made(transport)
    request = _request(measured.request)
    started = time.perf_counter()
    for _ in range(_TURNS):
        for protocol in protocols:
            protocol.data_received(request)
        while state.tasks:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0)
    seconds = time.perf_counter() - started
    for protocol, transport in zip(protocols, transports, strict=True):
        protocol.connection_lost(None)
        if transport.responses != _TURNS:
            raise RuntimeError(
                f"expected {_TURNS} responses with status 200, got {transport.responses}"
            )
    return seconds / _TURNS / CONNECTIONS * 1e6


def _request(request: RequestSpec) -> bytes:
    head = f"{request.method} {request.path} HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n"
    head += f"Content-Type: {request.content_type}\r\nContent-Length: {len(request.body)}\r\n\r\n"
    return head.encode() + request.body


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))  # noqa: T201 - it is the result
