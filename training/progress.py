"""The steps of a training and what each of them found, shown while they run.

Used by train.py and own.py. One line a step: on a terminal a spinner while it runs,
elsewhere the line begins when the step begins and ends when it ends.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console


@dataclass
class Step:
    """A running step; what it found is shown when it is done."""

    found: str = ""


class Steps:
    """Counts the steps up to `total` and shows them on a console."""

    def __init__(self, total: int, console: Console) -> None:
        self._total = total
        self._console = console
        self._begun = 0

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show a step while the block runs, then what it found and how long it took."""
        self._begun += 1
        line = f"[{self._begun}/{self._total}] {title}"
        step = Step()
        started = time.perf_counter()
        with self._running(line):
            yield step
        seconds = time.perf_counter() - started
        begun = f"{line}: " if self._console.is_terminal else ""
        self._print(f"{begun}{step.found} ({seconds:.2f} s)")

    def warn(self, text: str) -> None:
        """Show a warning in a line of its own, between two steps."""
        self._print(f"warning: {text}")

    def show(self, facts: dict[str, str]) -> None:
        """Show facts one a line, in two columns."""
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
        # As it is: no colours in paths, no line breaks at a width that a log file has not.
        self._console.print(text, end=end, markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()


def quiet() -> Console:
    """Return a console that shows nothing, for callers that are programs."""
    return Console(quiet=True)
