"""Decide when a failed attempt is repeated: after pauses that double up to a maximum."""

import time

# 2 to the power of 30 is longer than any maximum, and a power without a bound overflows a float.
_MAX_DOUBLINGS = 30


class Backoff:
    """The pauses after failures in a row: first_seconds, then twice as long each, to max_seconds.

    The caller counts the failures, because the count may have to survive the process.
    """

    def __init__(self, first_seconds: float, max_seconds: float) -> None:
        self._first_seconds = first_seconds
        self._max_seconds = max_seconds
        self._due_at = 0.0

    def is_due(self) -> bool:
        """Return whether the pause is over."""
        return time.monotonic() >= self._due_at

    def pause(self, failures: int) -> None:
        """Begin the pause after this many failures in a row, which is at least 1."""
        doubled = self._first_seconds * 2.0 ** min(failures - 1, _MAX_DOUBLINGS)
        self._due_at = time.monotonic() + min(self._max_seconds, doubled)
