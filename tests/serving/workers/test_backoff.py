"""Pauses between failed attempts."""

import time

import pytest

from serving.workers.backoff import Backoff


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 2), (2, 4), (3, 8), (6, 60), (1100, 60), (10**9, 60)]
)
def test_pauses_double_up_to_the_maximum(
    monkeypatch: pytest.MonkeyPatch, failures: int, seconds: float
) -> None:
    """Also after so many failures that the power of two would overflow a float."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    backoff = Backoff(first_seconds=2, max_seconds=60)
    assert backoff.is_due()

    backoff.pause(failures)

    now = 1000.0 + seconds - 0.5
    assert not backoff.is_due()
    now = 1000.0 + seconds
    assert backoff.is_due()
