"""How cost grows: with the rows of a request, with connections, with the size of a model."""

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
from benchmarks.interleave import again_and_again, take_turns
from benchmarks.load import Ask
from benchmarks.machine import ProcessTree
from benchmarks.samples import FEATURES, ROW
from benchmarks.systems import MODEL_LOAD, SYSTEMS

_ROWS = (1, 8, 64, 512)
_CONNECTIONS = (1, 4, 16, 64, 256)
# Of models, in megabytes.
_SIZES = (1, 10, 100, 500)
_MOST_ROUNDS = 3
_LOOK_SECONDS = 0.01
_SYSTEMS = {"bare": SYSTEMS["bare"], "model_in_image": SYSTEMS["this"], "model_load": MODEL_LOAD}


def rows(bench: Bench) -> Iterator[Measured]:
    """Yield /predict with more and more rows a request."""
    with bench.server(SYSTEMS["this"]) as server:
        bench.until_right(server)
        asks = {
            f"{count} rows": Ask("/predict", json.dumps({"data": [ROW] * count}).encode())
            for count in _ROWS
        }
        contenders = [
            bench.contender(server, name, ask, connections=FEWER_CONNECTIONS)
            for name, ask in asks.items()
        ]
        for found in take_turns("rows", contenders, bench.rounds):
            rate = found.values["requests_per_second"] * int(found.system.split()[0])
            yield replace(found, values={**found.values, "rows_per_second": rate})


def connections(bench: Bench) -> Iterator[Measured]:
    """Yield /predict with one row over more and more connections."""
    with bench.server(SYSTEMS["this"]) as server:
        bench.until_right(server)
        contenders = [
            bench.contender(server, f"{count} connections", connections=count)
            for count in _CONNECTIONS
        ]
        yield from take_turns("connections", contenders, bench.rounds)


def sizes(bench: Bench) -> Iterator[Measured]:
    """Yield start-up and peak memory by the size of the model.

    model_load pulls it by HTTP into an empty cache; bare is what ONNX Runtime itself needs.
    """
    subprocess.run(
        [sys.executable, "-m", "benchmarks.models", str(bench.store), *map(str, _SIZES)], check=True
    )
    with _served(bench.store) as store:
        for at in range(min(_MOST_ROUNDS, bench.rounds)):
            for megabytes in _SIZES:
                for name in random.sample(list(_SYSTEMS), len(_SYSTEMS)):
                    values = _start(bench, name, f"sized-{megabytes}", store)
                    yield Measured("sizes", f"{name}, {megabytes} MB", at, values)


def _start(bench: Bench, name: str, model: str, store: str) -> dict[str, float]:
    """Start a server until its first prediction; return how long it took and its peak memory."""
    ask = Ask("/predict", json.dumps({"data": [[1.0] * FEATURES]}).encode())
    settings = {}
    if name == "model_load":
        cache = bench.directory / f"cache-{random.getrandbits(64):x}"
        settings = {"MODEL_URI": f"{store}/{model}/1", "MODEL_CACHE_DIR": str(cache)}
    seen: list[int] = []
    with bench.server(replace(_SYSTEMS[name], ask=ask), model, settings=settings) as server:

        def look() -> bool:
            seen.append(ProcessTree(server.process.pid).pss_bytes())
            return True

        with again_and_again(look, _LOOK_SECONDS):
            seconds = server.wait_until_right(ask, lambda _: None)
    return {"start_seconds": seconds, "peak_bytes": max(seen, default=0)}


@contextmanager
def _served(store: Path) -> Iterator[str]:
    """Let a store be read by HTTP on loopback; yield its address."""
    handler = partial(_Quiet, directory=str(store))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""
