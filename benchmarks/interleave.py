"""Servers that take turns: short windows, in another order each round.

Whatever the machine does meanwhile befalls all of them, so that their ratios are worth something
where their numbers are not. Who lost a window to others gets another one.
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
from benchmarks.load import Ask, Load
from benchmarks.systems import Server

# At most so many times the rounds asked for.
_MOST_ROUNDS = 2
_HEALTH = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
_PAUSE_SECONDS = 0.004
_TIMEOUT_SECONDS = 20


@dataclass
class Contender:
    """One who takes turns: a server that runs, the script of what it is asked, and by how many."""

    name: str
    server: Server
    ask: Ask
    script: Path
    load: Load
    kept: int = 0

    def turn(self, scenario: str, at: int, *, asks_health: bool) -> Measured:
        """Measure it for one window; at is the round."""
        root, url = self.server.process.pid, self.server.url(self.ask)
        health: dict[str, float] = {}
        if asks_health:
            with (
                closing(Health(self.server.port)) as asked,
                again_and_again(asked.ask, _PAUSE_SECONDS),
            ):
                window = self.load.window(url, self.script, root)
            health = asked.found()
        else:
            window = self.load.window(url, self.script, root)
        self.kept += window.dropped is None
        return Measured(
            scenario, self.name, at, {**window.values(), **health}, window.dropped, window.note
        )


def take_turns(
    scenario: str,
    contenders: Sequence[Contender],
    rounds: int,
    *,
    asks_health: bool = False,
) -> Iterator[Measured]:
    """Yield what each window showed, until each contender has as many that count as rounds."""
    order = list(contenders)
    for one in order:
        replace(one.load, seconds=1).window(
            one.server.url(one.ask), one.script, one.server.process.pid
        )
    for at in range(_MOST_ROUNDS * rounds):
        if all(one.kept >= rounds for one in order):
            return
        random.shuffle(order)
        for one in order:
            yield one.turn(scenario, at, asks_health=asks_health)


class Health:
    """Somebody who asks for health, on a connection of its own, as long as that is well."""

    def __init__(self, port: int) -> None:
        self._connection = socket.create_connection(("127.0.0.1", port), _TIMEOUT_SECONDS)
        self._seconds: list[float] = []

    def close(self) -> None:
        """Ask no more."""
        self._connection.close()

    def ask(self) -> bool:
        """Ask once; return whether the answer was right."""
        started = time.perf_counter()
        self._connection.sendall(_HEALTH)
        answer = b""
        while not answer.endswith(b"}"):  # its head and its body may come one by one
            piece = self._connection.recv(1 << 16)
            if not piece:
                return False
            answer += piece
        if not answer.startswith(b"HTTP/1.1 200"):
            return False
        self._seconds.append(time.perf_counter() - started)
        return True

    def found(self) -> dict[str, float]:
        """Return the 99th percentile of the answers' times, in seconds; nothing without two."""
        if len(self._seconds) < 2:
            return {}
        return {"health_p99": quantiles(self._seconds, n=100, method="inclusive")[98]}


@contextmanager
def again_and_again(act: Callable[[], bool], pause_seconds: float) -> Iterator[None]:
    """Act in a thread meanwhile, with pauses, until it returns False."""
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
