"""The hot path without a network: ASGI applications called directly, microseconds a request.

Run as `python -m benchmarks.micro STORE` in a process of its own; prints JSON. Says where time
goes that is not the protocol's.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

_REPEATS, _CALLS = 15, 400
App = Callable[[Any, Any, Any], Awaitable[None]]
_BODY = b'{"data":[[5.1,3.5,1.4,0.2]]}'
_INFER = b'{"inputs":[{"name":"input","shape":[1,4],"datatype":"FP32","data":[5.1,3.5,1.4,0.2]}]}'


def measure(store: Path) -> dict[str, list[float]]:
    """Return microseconds a request, of each repeat, by what was called."""
    return asyncio.run(_measure(store))


async def _measure(store: Path) -> dict[str, list[float]]:
    directory = store / "iris" / "1"
    os.environ["MODEL"] = str(directory / "model.onnx")
    from benchmarks.bare.server import app as bare  # noqa: PLC0415 - reads the environment
    from benchmarks.fastapi.server import app as fastapi  # noqa: PLC0415 - reads the environment
    from benchmarks.limit.server import app as limit  # noqa: PLC0415 - reads the environment
    from model_in_image.source import ModelInImageSettings  # noqa: PLC0415 - last, as the others
    from serving.app import create_app  # noqa: PLC0415 - last, as the others

    this = create_app(ModelInImageSettings(model_dir=directory), directory)
    called: dict[str, tuple[App, str, bytes]] = {
        "limit": (limit, "/predict", _BODY),
        "bare": (bare, "/predict", _BODY),
        "this, /predict": (this, "/predict", _BODY),
        "this, v2 infer": (this, "/v2/models/iris/infer", _INFER),
        "fastapi": (fastapi, "/predict", _BODY),
    }
    found: dict[str, list[float]] = {name: [] for name in called}
    async with this.router.lifespan_context(this):
        for at in range(-1, _REPEATS):
            for name, (app, path, body) in called.items():
                microseconds = await _microseconds(app, path, body)
                if at >= 0:  # the first repeat warms up
                    found[name].append(microseconds)
    return found


async def _microseconds(app: App, path: str, body: bytes) -> float:
    statuses: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    started = time.perf_counter()
    for _ in range(_CALLS):
        messages = _messages(body)

        async def receive(messages: Iterator[Any] = messages) -> Any:
            return next(messages)

        await app(_scope(path, body), receive, send)
    seconds = time.perf_counter() - started
    if statuses != [200] * _CALLS:
        raise RuntimeError(f"{path}: expected {_CALLS} times 200, got {statuses[:5]}")
    return seconds / _CALLS * 1e6


def _messages(body: bytes) -> Iterator[Any]:
    yield {"type": "http.request", "body": body, "more_body": False}
    yield {"type": "http.disconnect"}


def _scope(path: str, body: bytes) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": "POST",
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [
            (b"host", b"127.0.0.1:8000"),
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
        ],
        "state": {},
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))  # noqa: T201 - it is the result
