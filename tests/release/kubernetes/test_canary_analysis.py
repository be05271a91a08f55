"""When a canary counts as worse: with the metrics of real servers, and with counts at the limit."""

import math
from pathlib import Path

import httpx
import pytest

from release.kubernetes.canary_analysis import Counts, find_regressions
from tests.servers import ROWS, Start


def counts(requests: int, *, errors: int = 0, slow: int = 0) -> Counts:
    """Requests of which `slow` took between 10 and 100 ms, and all others less than 10 ms."""
    return Counts(requests, errors, {0.01: requests - slow, 0.1: requests, math.inf: requests})


@pytest.mark.parametrize(
    ("canary", "stable"),
    [
        (counts(500), counts(500)),
        (counts(500, errors=1), counts(500)),
        (counts(500, errors=20), counts(500, errors=20)),
        (counts(500, slow=5), counts(500, slow=5)),
        (counts(500, slow=8), counts(500, slow=4)),
        (counts(500), counts(500, errors=50, slow=50)),
        (counts(0), counts(0)),
        (counts(20, errors=1, slow=1), counts(500)),
    ],
)
def test_differences_by_chance_are_no_regression(canary: Counts, stable: Counts) -> None:
    assert find_regressions(canary, stable, 500) == []


@pytest.mark.parametrize(
    ("canary", "stable", "message"),
    [
        (counts(500, errors=8), counts(500), "errors: 8 of 500 requests, stable 0 of 500"),
        (counts(500, errors=500), counts(5000, errors=9), "errors: 500 of 500"),
        (
            counts(500, slow=25),
            counts(500, slow=4),
            "p99 latency: 25 of 500 requests took longer than 10 ms, stable 4 of 500",
        ),
    ],
)
def test_significant_differences_are_regressions(
    canary: Counts, stable: Counts, message: str
) -> None:
    (regression,) = find_regressions(canary, stable, 500)

    assert regression.startswith(message)


def test_errors_and_latency_are_reported_together() -> None:
    assert len(find_regressions(counts(500, errors=100, slow=100), counts(500), 500)) == 2


def test_a_faster_canary_is_no_regression() -> None:
    """Stable's 99th percentile lies in a bucket above all requests of the canary."""
    assert find_regressions(counts(500), counts(500, slow=100), 500) == []


def test_latency_is_compared_only_with_enough_requests() -> None:
    """Seen on a cluster: 10 of 64 requests were slow because the node was busy for a moment."""
    few = counts(64, errors=10, slow=10)

    (regression,) = find_regressions(few, counts(60), 500)

    assert regression.startswith("errors: 10 of 64")


def test_only_predictions_are_counted(server: Start, store: Path) -> None:
    """The cluster requests health and metrics; those say nothing about the model."""
    running = server(store / "iris" / "1", MANAGEMENT_PORT="0", WORKERS="2").wait_until_ready()
    management = str(running.management_url)
    body = {"data": ROWS}
    httpx.post(f"{running.url}/predict", json=body).raise_for_status()
    before = Counts.read(management)

    for _ in range(4):
        httpx.post(f"{running.url}/predict", json=body).raise_for_status()
        httpx.post(f"{running.url}/predict/label", json=body).raise_for_status()
        httpx.get(f"{running.url}/health").raise_for_status()
    assert httpx.post(f"{running.url}/predict", json={}).status_code == 400

    difference = Counts.read(management) - before
    assert (difference.requests, difference.errors) == (9, 1)
    assert difference.timed == 9
    assert 0 < difference.p99_bound < math.inf
    assert difference.slower_than(difference.p99_bound) == 0
    assert str(difference).startswith("9 requests, 1 errors, 99 % within ")


def test_counts_of_replicas_are_added() -> None:
    both = counts(500, errors=1, slow=2) + counts(100, errors=2, slow=3)

    assert (both.requests, both.errors, both.slower_than(0.01)) == (600, 3, 5)
    assert Counts() + both == both
