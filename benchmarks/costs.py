"""How cost grows: with the rows of a request, with connections, with the size of a model."""

import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

from benchmarks.bench import Bench
from benchmarks.goals import Measured
from benchmarks.load import Ask
from benchmarks.machine import ProcessTree
from benchmarks.samples import FEATURES, ROW
from benchmarks.systems import SYSTEMS
from benchmarks.turns import take_turns

_ROWS = (1, 8, 64, 512)
_CONNECTIONS = (1, 4, 16, 64, 256)
_FEW = 8  # where a body is large
# Of models, in megabytes.
_SIZES = (1, 10, 100, 500)
_MOST_ROUNDS = 3
_LOOK_SECONDS = 0.01
_SYSTEMS = ("bare", "model_in_image", "model_load")


def rows(bench: Bench) -> Iterator[Measured]:
    """Yield /predict with more and more rows a request."""
    with bench.server(SYSTEMS["this"]) as server:
        bench.until_right(server)
        asks = {
            f"{count} rows": Ask("/predict", json.dumps({"data": [ROW] * count}).encode())
            for count in _ROWS
        }
        contenders = [
            bench.contender(server, name, ask, connections=_FEW) for name, ask in asks.items()
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
    with _Store(bench.store) as store:
        for at in range(min(_MOST_ROUNDS, bench.rounds)):
            for megabytes in _SIZES:
                for name in random.sample(_SYSTEMS, len(_SYSTEMS)):
                    values = _start(bench, name, f"sized-{megabytes}", store)
                    yield Measured("sizes", f"{name}, {megabytes} MB", at, values)


def _start(bench: Bench, name: str, model: str, store: "_Store") -> dict[str, float]:
    """Start a server until its first prediction; return how long it took and its peak memory."""
    ask = Ask("/predict", json.dumps({"data": [[1.0] * FEATURES]}).encode())
    system, settings = SYSTEMS["bare" if name == "bare" else "this"], {}
    if name == "model_load":
        system = replace(system, command=("{python}", "-m", "model_load"))
        cache = bench.directory / f"cache-{random.getrandbits(64):x}"
        settings = {"MODEL_URI": f"{store.url}/{model}/1", "MODEL_CACHE_DIR": str(cache)}
    with (
        bench.server(replace(system, ask=ask), model, settings=settings) as server,
        _Peak(server.process.pid) as peak,
    ):
        seconds = server.wait_until_right(ask, lambda _: None)
    return {"start_seconds": seconds, "peak_bytes": peak.found}


class _Peak:
    """The most memory that a tree of processes has at a time, as far as one can see."""

    def __init__(self, root: int) -> None:
        self.found = 0
        self._root = root
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ends.wait(_LOOK_SECONDS):
            self.found = max(self.found, ProcessTree(self._root).pss_bytes())


class _Store:
    """The models, read by HTTP on loopback."""

    def __init__(self, directory: Path) -> None:
        handler = partial(_Quiet, directory=str(directory))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""
