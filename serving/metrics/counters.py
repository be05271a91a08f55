"""Counters, gauges, and histograms in shared memory, written by all workers of one server.

Each worker writes to a slot of its own, and any process can add up all slots. The memory is
allocated before the fork. When a worker exits, its replacement claims the same slot, so totals
never go down. Counting is one addition in memory, without a lock: prometheus_client's own
counters lock, and took 5 of the 21 us of a request.
"""

import mmap
from bisect import bisect_left
from collections.abc import Sequence

_VALUE_BYTES = 8
_MAX_VALUES = 1 << 12


class Counters:
    """Shared memory that is divided into slots of float values.

    slots: at least the number of workers that run at the same time, including workers that are
    about to be replaced.
    """

    def __init__(self, slots: int) -> None:
        # Anonymous memory is inherited by forked children, and is freed with the last process.
        self._memory = mmap.mmap(-1, slots * _MAX_VALUES * _VALUE_BYTES)
        values = memoryview(self._memory).cast("d")
        self._slots = [
            values[slot * _MAX_VALUES : (slot + 1) * _MAX_VALUES] for slot in range(slots)
        ]
        self._free = list(reversed(range(slots)))
        self._allocated = 0
        self._gauges: list[int] = []
        # The values that this process writes to.
        self.values = self._slots[0]

    def allocate(self, count: int = 1, *, gauge: bool = False) -> int:
        """Reserve values in every slot and return the index of the first. Call before the fork.

        gauge: the value is reset to 0 when its worker exits.
        """
        first = self._allocated
        self._allocated += count
        if self._allocated > _MAX_VALUES:
            raise RuntimeError(f"expected at most {_MAX_VALUES} values, got {self._allocated}")
        if gauge:
            self._gauges += range(first, self._allocated)
        return first

    def claim_slot(self) -> int:
        """Claim a free slot for this process and for children forked after this call."""
        # If there are more workers than slots, the surplus workers write to the last slot. Then a
        # simultaneous update can get lost, which is better than a worker that does not start.
        slot = self._free.pop() if self._free else len(self._slots) - 1
        self.values = self._slots[slot]
        return slot

    def release_slot(self, slot: int) -> None:
        """Free the slot of a worker that exited: counts stay, gauges are reset to 0."""
        for index in self._gauges:
            self._slots[slot][index] = 0
        # A slot that several workers wrote to is released by each of them.
        if slot not in self._free:
            self._free.append(slot)

    def total(self, index: int) -> float:
        """Return the sum of a value over all slots."""
        return sum(values[index] for values in self._slots)

    def max(self, index: int) -> float:
        """Return the maximum of a value over all slots."""
        return max(values[index] for values in self._slots)


class Counter:
    """A number that only increases, for example of requests."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._index = counters.allocate()

    def add(self, count: float) -> None:
        """Increase the count of this worker."""
        self._counters.values[self._index] += count

    def total(self) -> float:
        """Return the sum over all workers."""
        return self._counters.total(self._index)


class Gauge:
    """A number that goes up and down, for example of requests in flight."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._index = counters.allocate(gauge=True)

    def add(self, count: float) -> None:
        """Increase the value of this worker; decrease it if count is negative."""
        self._counters.values[self._index] += count

    def set(self, value: float) -> None:
        """Set the value of this worker."""
        self._counters.values[self._index] = value

    def total(self) -> float:
        """Return the sum over all workers."""
        return self._counters.total(self._index)

    def max(self) -> float:
        """Return the maximum over all workers."""
        return self._counters.max(self._index)


class Histogram:
    """The number of values per bucket, and their sum.

    bounds: the upper bound of each bucket, ascending. One more bucket holds larger values.
    """

    def __init__(self, counters: Counters, bounds: Sequence[float]) -> None:
        self._counters = counters
        self.bounds = bounds
        # In shared memory: the buckets, the bucket of larger values, then the sum.
        self._first = counters.allocate(len(bounds) + 2)
        self._sum = self._first + len(bounds) + 1

    def observe(self, value: float) -> None:
        """Count a value in its bucket and add it to the sum."""
        values = self._counters.values
        values[self._first + bisect_left(self.bounds, value)] += 1
        values[self._sum] += value

    def counts(self) -> list[float]:
        """Return the number of values in each bucket, over all workers. Not cumulative."""
        return [self._counters.total(index) for index in range(self._first, self._sum)]

    def sum(self) -> float:
        """Return the sum of all values of all workers."""
        return self._counters.total(self._sum)
