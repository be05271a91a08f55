"""Measure servers in turns: short windows, in a random order in each round.

Other load on the machine affects all servers alike, so ratios are reliable although absolute
numbers are not. A window that was disturbed is dropped and measured again.
"""

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import quantiles

from benchmarks.goals import Measured
from benchmarks.load import Load, RequestSpec
from benchmarks.systems import Server

# Limit of the rounds, as a multiple of the requested number.
_MAX_ROUNDS_FACTOR = 2
_HEALTH = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
_PAUSE_SECONDS = 0.004
_TIMEOUT_SECONDS = 20


@dataclass
class Contender:
    """A running server, its request, and the load."""

    name: str
    server: Server
    request: RequestSpec
    script: Path
    load: Load
    # The number of undisturbed windows so far.
    kept: int = 0

    def measure(self, scenario: str, at: int, *, polls_health: bool) -> Measured:
        """Measure one window. at: the round."""
        root, url = self.server.process.pid, self.server.url(self.request)
        health: dict[str, float] = {}
        if polls_health:
            with (
                closing(HealthClient(self.server.port)) as client,
                repeated(client.poll, _PAUSE_SECONDS),
            ):
                window = self.load.window(url, self.script, root)
            health = client.percentile()
        else:
            window = self.load.window(url, self.script, root)
        self.kept += window.dropped is None
        return Measured(
            scenario, self.name, at, {**window.values(), **health}, window.dropped, window.note
        )


def interleave(
    scenario: str,
    contenders: Sequence[Contender],
    rounds: int,
    *,
    polls_health: bool = False,
) -> Iterator[Measured]:
    """Yield each window until every contender has one undisturbed window per round."""
    order = list(contenders)
    for contender in order:  # warm up
        replace(contender.load, seconds=1).window(
            contender.server.url(contender.request),
            contender.script,
            contender.server.process.pid,
        )
    for at in range(_MAX_ROUNDS_FACTOR * rounds):
        if all(contender.kept >= rounds for contender in order):
            return
        random.shuffle(order)
        for contender in order:
            yield contender.measure(scenario, at, polls_health=polls_health)


class HealthClient:
    """Polls the liveness endpoint on its own connection and records the response times."""

    def __init__(self, port: int) -> None:
        self._connection = socket.create_connection(("127.0.0.1", port), _TIMEOUT_SECONDS)
        self._seconds: list[float] = []

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def poll(self) -> bool:
        """Send one request; return whether the status was 200."""
        started = time.perf_counter()
        self._connection.sendall(_HEALTH)
        response = b""
        while not response.endswith(b"}"):  # head and body may arrive separately
            piece = self._connection.recv(1 << 16)
            if not piece:
                return False
            response += piece
        if not response.startswith(b"HTTP/1.1 200"):
            return False
        self._seconds.append(time.perf_counter() - started)
        return True

    def percentile(self) -> dict[str, float]:
        """Return the 99th percentile of the response times in seconds, {} for fewer than two."""
        if len(self._seconds) < 2:
            return {}
        return {"health_p99": quantiles(self._seconds, n=100, method="inclusive")[98]}


@contextmanager
def repeated(act: Callable[[], bool], pause_seconds: float) -> Iterator[None]:
    """Call a function repeatedly in a thread during the block, until it returns False."""
    ends = threading.Event()

    def repeat() -> None:
        while not ends.wait(pause_seconds) and act():
            pass

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join(_TIMEOUT_SECONDS)
