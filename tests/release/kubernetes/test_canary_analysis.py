"""When a canary is worse, by what real servers count and by counts on the edge."""

import math
from pathlib import Path

import httpx
import pytest

from release.kubernetes.canary_analysis import Counts, worse
from tests.servers import ROWS, Start


def counts(requests: int, *, errors: int = 0, slow: int = 0) -> Counts:
    """Requests of which some took between 10 and 100 ms, all others less than 10 ms."""
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
def test_what_chance_explains_is_not_worse(canary: Counts, stable: Counts) -> None:
    assert worse(canary, stable, 500) == []


@pytest.mark.parametrize(
    ("canary", "stable", "said"),
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
def test_what_chance_does_not_explain_is_worse(canary: Counts, stable: Counts, said: str) -> None:
    (found,) = worse(canary, stable, 500)

    assert found.startswith(said)


def test_both_are_said() -> None:
    assert len(worse(counts(500, errors=100, slow=100), counts(500), 500)) == 2


def test_a_faster_canary_is_not_worse() -> None:
    """Stable's 99th percentile lies in a bucket beyond all of the canary's requests."""
    assert worse(counts(500), counts(500, slow=100), 500) == []


def test_latency_is_not_judged_by_a_few_requests() -> None:
    """As seen: 10 of 64 came in one moment in which the node was busy. Errors are told apart."""
    few = counts(64, errors=10, slow=10)

    (found,) = worse(few, counts(60), 500)

    assert found.startswith("errors: 10 of 64")


def test_counts_are_those_of_predictions_between_two_looks(server: Start, store: Path) -> None:
    """Health and metrics are asked by the cluster, and a start is no traffic."""
    started = server(store / "iris" / "1", MANAGEMENT_PORT="0", WORKERS="2").wait_until_ready()
    management = str(started.management_url)
    body = {"data": ROWS}
    httpx.post(f"{started.url}/predict", json=body).raise_for_status()
    before = Counts.at(management)

    for _ in range(4):
        httpx.post(f"{started.url}/predict", json=body).raise_for_status()
        httpx.post(f"{started.url}/predict/label", json=body).raise_for_status()
        httpx.get(f"{started.url}/health").raise_for_status()
    assert httpx.post(f"{started.url}/predict", json={}).status_code == 400

    made = Counts.at(management) - before
    assert (made.requests, made.errors) == (9, 1)
    assert made.within[math.inf] == 9
    assert 0 < made.p99_bound < math.inf
    assert made.beyond(made.p99_bound) == 0
    assert str(made).startswith("9 requests, 1 errors, 99 of 100 within ")


def test_replicas_are_added_up() -> None:
    both = counts(500, errors=1, slow=2) + counts(100, errors=2, slow=3)

    assert (both.requests, both.errors, both.beyond(0.01)) == (600, 3, 5)
    assert Counts() + both == both
