"""Decide whether a canary fails more often or is slower than stable replicas of the same age.

The counts are differences of the pods' own /metrics between the start and the end of a step. A
difference is significant if chance does not explain it: Fisher's exact test, one-sided (R. A.
Fisher, The Design of Experiments, 1935). Old replicas have warm caches, so the canary is compared
with fresh stable replicas, as in "Canary Analysis Service" (Davidovič and Beyer, ACM Queue 16(1),
2018).
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

import httpx
from prometheus_client.parser import text_string_to_metric_families
from scipy.stats import fisher_exact

from serving.http import infer

# The probability, per comparison, that a canary that is as good as stable is aborted.
_SIGNIFICANCE = 0.01
_QUANTILE = 0.99
# Requests of users. The cluster sends requests to health and metrics.
_ENDPOINTS = ("/predict", "/predict/label", infer.ENDPOINT)
_TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class Counts:
    """Requests that replicas have answered."""

    requests: int = 0
    # Responses with a status other than 2xx.
    errors: int = 0
    # Cumulative histogram of latency: requests by the upper bound of their bucket, in seconds.
    buckets: dict[float, int] = field(default_factory=dict)

    @classmethod
    def read(cls, url: str) -> Self:
        """Return the counts of a replica since its start. Raises httpx.HTTPError."""
        response = httpx.get(f"{url}/metrics", timeout=_TIMEOUT_SECONDS).raise_for_status()
        requests = errors = 0
        buckets = Counter[float]()
        for family in text_string_to_metric_families(response.text):
            for sample in family.samples:
                if sample.labels.get("endpoint") not in _ENDPOINTS:
                    continue
                count = int(sample.value)
                if sample.name == "http_requests_total":
                    requests += count
                    errors += count if sample.labels["status"] != "2xx" else 0
                elif sample.name == "http_request_duration_seconds_bucket":
                    buckets[float(sample.labels["le"])] += count
        return cls(requests, errors, dict(buckets))

    def __add__(self, other: "Counts") -> "Counts":
        buckets = Counter(self.buckets)
        buckets.update(other.buckets)
        return Counts(self.requests + other.requests, self.errors + other.errors, dict(buckets))

    def __sub__(self, other: "Counts") -> "Counts":
        buckets = {le: count - other.buckets.get(le, 0) for le, count in self.buckets.items()}
        return Counts(self.requests - other.requests, self.errors - other.errors, buckets)

    @property
    def timed(self) -> int:
        """The number of requests in the histogram."""
        return self.buckets.get(math.inf, 0)

    @property
    def p99_bound(self) -> float:
        """The lowest bucket bound that 99 % of the requests stayed within, in seconds."""
        bounds = (le for le in sorted(self.buckets) if self.buckets[le] >= _QUANTILE * self.timed)
        return next(bounds, math.inf)

    def slower_than(self, bound: float) -> int:
        """Return how many requests took longer than a bucket bound, in seconds."""
        return self.timed - self.buckets.get(bound, 0)

    def __str__(self) -> str:
        return (
            f"{self.requests} requests, {self.errors} errors, "
            f"99 % within {self.p99_bound * 1000:g} ms"
        )


def find_regressions(canary: Counts, stable: Counts, min_requests: float) -> list[str]:
    """Return each way in which the canary is significantly worse, as text.

    min_requests: how many requests each track must have answered before latency is compared. With
    fewer, one busy moment of a node decides.
    """
    regressions = []
    if _is_more_frequent(canary.errors, canary.requests, stable.errors, stable.requests):
        regressions.append(
            f"errors: {canary.errors} of {canary.requests} requests, "
            f"stable {stable.errors} of {stable.requests}"
        )
    if min(canary.requests, stable.requests) < min_requests:
        return regressions
    bound = stable.p99_bound
    slow, stable_slow = canary.slower_than(bound), stable.slower_than(bound)
    # More than 1 % slower than stable's 99th percentile, and significantly more than stable.
    if slow > (1 - _QUANTILE) * canary.timed and _is_more_frequent(
        slow, canary.timed, stable_slow, stable.timed
    ):
        regressions.append(
            f"p99 latency: {slow} of {canary.timed} requests took longer than "
            f"{bound * 1000:g} ms, stable {stable_slow} of {stable.timed}"
        )
    return regressions


def _is_more_frequent(events: int, total: int, stable_events: int, stable_total: int) -> bool:
    table = [[events, total - events], [stable_events, stable_total - stable_events]]
    return bool(fisher_exact(table, alternative="greater").pvalue < _SIGNIFICANCE)
