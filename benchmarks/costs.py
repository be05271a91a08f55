"""Scenarios that show how cost grows with rows, connections, and the size of the model."""

import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.bench import FEWER_CONNECTIONS, Bench
from benchmarks.goals import Measured
from benchmarks.interleave import interleave, repeated
from benchmarks.load import RequestSpec
from benchmarks.machine import ProcessTree
from benchmarks.samples import FEATURES, ROW
from benchmarks.systems import MODEL_LOAD, SYSTEMS

_ROWS = (1, 8, 64, 512)
_CONNECTIONS = (1, 4, 16, 64, 256)
# Model sizes in megabytes.
_SIZES = (1, 10, 100, 500)
_MAX_ROUNDS = 3
_POLL_SECONDS = 0.01
_SYSTEMS = {
    "asgi_onnxruntime": SYSTEMS["asgi_onnxruntime"],
    "model_in_image": SYSTEMS["this"],
    "model_load": MODEL_LOAD,
}


def rows(bench: Bench) -> Iterator[Measured]:
    """Measure /predict with an increasing number of rows per request."""
    with bench.server(SYSTEMS["this"]) as server:
        bench.wait_until_correct(server)
        requests = {
            f"{count} rows": RequestSpec("/predict", json.dumps({"data": [ROW] * count}).encode())
            for count in _ROWS
        }
        contenders = [
            bench.contender(server, name, request, connections=FEWER_CONNECTIONS)
            for name, request in requests.items()
        ]
        for window in interleave("rows", contenders, bench.rounds):
            rate = window.values["requests_per_second"] * int(window.system.split()[0])
            yield replace(window, values={**window.values, "rows_per_second": rate})


def connections(bench: Bench) -> Iterator[Measured]:
    """Measure /predict with one row and an increasing number of connections."""
    with bench.server(SYSTEMS["this"]) as server:
        bench.wait_until_correct(server)
        contenders = [
            bench.contender(server, f"{count} connections", connections=count)
            for count in _CONNECTIONS
        ]
        yield from interleave("connections", contenders, bench.rounds)


def sizes(bench: Bench) -> Iterator[Measured]:
    """Measure start-up time and peak memory by the size of the model.

    model_load pulls the model by HTTP into an empty cache; asgi_onnxruntime shows the share of
    ONNX Runtime itself.
    """
    subprocess.run(
        [sys.executable, "-m", "benchmarks.models", str(bench.store), *map(str, _SIZES)], check=True
    )
    with _served(bench.store) as store:
        for at in range(min(_MAX_ROUNDS, bench.rounds)):
            for megabytes in _SIZES:
                for name in random.sample(list(_SYSTEMS), len(_SYSTEMS)):
                    values = _start(bench, name, f"sized-{megabytes}", store)
                    yield Measured("sizes", f"{name}, {megabytes} MB", at, values)


def _start(bench: Bench, name: str, model: str, store: str) -> dict[str, float]:
    """Start a server, wait for its first prediction; return the time and its peak memory."""
    request = RequestSpec("/predict", json.dumps({"data": [[1.0] * FEATURES]}).encode())
    settings = {}
    if name == "model_load":
        cache = bench.directory / f"cache-{random.getrandbits(64):x}"
        settings = {"MODEL_URI": f"{store}/{model}/1", "MODEL_CACHE_DIR": str(cache)}
    samples: list[int] = []
    with bench.server(replace(_SYSTEMS[name], request=request), model, settings=settings) as server:

        def sample() -> bool:
            samples.append(ProcessTree(server.process.pid).pss_bytes())
            return True

        with repeated(sample, _POLL_SECONDS):
            seconds = server.wait_until_correct(request, lambda _: None)
    return {"start_seconds": seconds, "peak_bytes": max(samples, default=0)}


@contextmanager
def _served(store: Path) -> Iterator[str]:
    """Serve a store by HTTP on loopback; yield its address."""
    handler = partial(_Quiet, directory=str(store))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Log nothing."""
