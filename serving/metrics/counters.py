"""Numbers that the workers of one server count in, and that any of them can read for all.

Made before the fork by app.py; server.py gives each worker a row of its own, and the row of one
that ended to the one that takes its place, so what was counted stays. Counting is an addition
in memory: prometheus_client's counters, which lock, took 5 of the 21 us of a request.
"""

import mmap
from bisect import bisect_left
from collections.abc import Sequence

_BYTES = 8
_MOST_NUMBERS = 1 << 12


class Counters:
    """A table of numbers in memory that is shared with what is forked from here: rows, columns.

    rows: at least one for each worker that there is at a time.
    """

    def __init__(self, rows: int) -> None:
        self._memory = mmap.mmap(-1, rows * _MOST_NUMBERS * _BYTES)
        numbers = memoryview(self._memory).cast("d")
        self._rows = [numbers[at * _MOST_NUMBERS : (at + 1) * _MOST_NUMBERS] for at in range(rows)]
        self._gauges: list[int] = []
        self._free = list(reversed(range(rows)))
        self._columns = 0
        self.row = self._rows[0]

    def column(self, count: int = 1, *, gauge: bool = False) -> int:
        """Reserve columns and return the first. gauge: what a worker that ends has none of."""
        first = self._columns
        self._columns += count
        if self._columns > _MOST_NUMBERS:
            raise RuntimeError(f"expected at most {_MOST_NUMBERS} numbers, got {self._columns}")
        if gauge:
            self._gauges += range(first, self._columns)
        return first

    def take_row(self) -> int:
        """Count in a row that nobody has from now on, as what is forked then does; return which."""
        # Should there be more workers than rows, the last ones share one.
        taken = self._free.pop() if self._free else len(self._rows) - 1
        self.row = self._rows[taken]
        return taken

    def give_back(self, row: int) -> None:
        """Let the next worker go on in the row of one that ended."""
        for column in self._gauges:
            self._rows[row][column] = 0
        if row not in self._free:
            self._free.append(row)

    def total(self, column: int) -> float:
        """Return the sum of a column."""
        return sum(row[column] for row in self._rows)

    def largest(self, column: int) -> float:
        """Return the largest number of a column."""
        return max(row[column] for row in self._rows)


class Number:
    """One number: a counter, or a gauge of what each worker has."""

    def __init__(self, counters: Counters, *, gauge: bool = False) -> None:
        self._counters = counters
        self.column = counters.column(gauge=gauge)

    def add(self, count: float) -> None:
        """Add to what this worker has."""
        self._counters.row[self.column] += count

    def set(self, value: float) -> None:
        """Say what this worker has."""
        self._counters.row[self.column] = value

    def total(self) -> float:
        """Return what all workers have together."""
        return self._counters.total(self.column)

    def largest(self) -> float:
        """Return the most that a worker has."""
        return self._counters.largest(self.column)


class Distribution:
    """How many values were up to each bound, and their sum. bounds: rising."""

    def __init__(self, counters: Counters, bounds: Sequence[float]) -> None:
        self._counters = counters
        self.bounds = bounds
        # One for each bound, one for what is beyond them all, and the sum.
        self._first = counters.column(len(bounds) + 2)
        self._sum = self._first + len(bounds) + 1

    def observe(self, value: float) -> None:
        """Count one value."""
        row = self._counters.row
        row[self._first + bisect_left(self.bounds, value)] += 1
        row[self._sum] += value

    def counts(self) -> list[float]:
        """Return how many values of all workers were up to each bound and beyond the one before."""
        return [self._counters.total(column) for column in range(self._first, self._sum)]

    def sum(self) -> float:
        """Return the sum of all values of all workers."""
        return self._counters.total(self._sum)
