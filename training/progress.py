"""Print the steps of a command: title, result, and duration, one line per step.

A terminal shows a spinner while the step runs. In a log file the title is written when the step
starts, and the rest of the line when it ends.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console


@dataclass
class Step:
    """A running step. Its result is printed when it ends."""

    result: str = ""


class Steps:
    """Prints numbered steps on a console. total: the number of steps."""

    def __init__(self, total: int, console: Console) -> None:
        self._total = total
        self._console = console
        self._started = 0

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Print a step while the block runs, then its result and its duration."""
        self._started += 1
        line = f"[{self._started}/{self._total}] {title}"
        step = Step()
        started = time.perf_counter()
        with self._running(line):
            yield step
        seconds = time.perf_counter() - started
        prefix = f"{line}: " if self._console.is_terminal else ""
        self._print(f"{prefix}{step.result} ({seconds:.2f} s)")

    def warn(self, text: str) -> None:
        """Print a warning on its own line, between two steps."""
        self._print(f"warning: {text}")

    def show(self, facts: dict[str, str]) -> None:
        """Print facts, one per line, in two columns."""
        width = max(len(name) for name in facts)
        for name, value in facts.items():
            self._print(f"  {name:{width}}  {value}")

    @contextmanager
    def _running(self, line: str) -> Iterator[None]:
        if self._console.is_terminal:
            with self._console.status(line, spinner="line"):
                yield
            return
        self._print(f"{line}: ", end="")
        try:
            yield
        except BaseException:
            self._print("failed")
            raise

    def _print(self, text: str, end: str = "\n") -> None:
        # No colours in paths, and no line breaks: a log file has no width.
        self._console.print(text, end=end, markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()


def quiet() -> Console:
    """Return a console that prints nothing, for calls from code."""
    return Console(quiet=True)
