"""Whether a canary is worse than stable replicas of its age: what both counted meanwhile.

Counts are those of the pods' own /metrics, between two looks at the same pods. A difference
counts when chance does not explain it: Fisher's exact test, one-sided (R. A. Fisher, The Design
of Experiments, 1935). Fresh stable replicas to compare with, and not the old ones, follow
"Canary Analysis Service" (Davidovič and Beyer, ACM Queue 16(1), 2018).
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

import httpx
from prometheus_client.parser import text_string_to_metric_families
from scipy.stats import fisher_exact

from serving.http import infer

# How often a canary that is no worse is taken for worse, for each comparison.
_CHANCE = 0.01
_QUANTILE = 0.99
# What users ask; health and metrics are asked by the cluster.
_ENDPOINTS = ("/predict", "/predict/label", infer.ENDPOINT)
_SECONDS = 10


@dataclass(frozen=True)
class Counts:
    """Requests that replicas answered: how many, how many not with 2xx, how many within what.

    within: requests by the upper bound of their histogram's bucket, in seconds, cumulative.
    """

    requests: int = 0
    errors: int = 0
    within: dict[float, int] = field(default_factory=dict)

    @classmethod
    def at(cls, url: str) -> Self:
        """Return what a replica has counted since its start. Raises httpx.HTTPError."""
        answer = httpx.get(f"{url}/metrics", timeout=_SECONDS).raise_for_status()
        requests = errors = 0
        within = Counter[float]()
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                if sample.labels.get("endpoint") not in _ENDPOINTS:
                    continue
                count = int(sample.value)
                if sample.name == "http_requests_total":
                    requests += count
                    errors += count if sample.labels["status"] != "2xx" else 0
                elif sample.name == "http_request_duration_seconds_bucket":
                    within[float(sample.labels["le"])] += count
        return cls(requests, errors, dict(within))

    def __add__(self, other: "Counts") -> "Counts":
        within = Counter(self.within)
        within.update(other.within)
        return Counts(self.requests + other.requests, self.errors + other.errors, dict(within))

    def __sub__(self, other: "Counts") -> "Counts":
        within = {le: count - other.within.get(le, 0) for le, count in self.within.items()}
        return Counts(self.requests - other.requests, self.errors - other.errors, within)

    @property
    def p99_bound(self) -> float:
        """The least bound of a bucket that 99 of 100 requests were within, in seconds."""
        timed = self.within.get(math.inf, 0)
        within = (le for le in sorted(self.within) if self.within[le] >= _QUANTILE * timed)
        return next(within, math.inf)

    def beyond(self, bound: float) -> int:
        """Return how many requests took longer than a bound of a bucket, in seconds."""
        return self.within.get(math.inf, 0) - self.within.get(bound, 0)

    def __str__(self) -> str:
        return (
            f"{self.requests} requests, {self.errors} errors, "
            f"99 of 100 within {self.p99_bound * 1000:g} ms"
        )


def worse(canary: Counts, stable: Counts, min_requests: float) -> list[str]:
    """Return in what a canary is worse than stable replicas; nothing if in nothing.

    min_requests: how many each must have answered for their latency to be compared. Of fewer, one
    moment in which a node was busy is too large a part.
    """
    found = []
    if _more_often(canary.errors, canary.requests, stable.errors, stable.requests):
        found.append(
            f"errors: {canary.errors} of {canary.requests} requests, "
            f"stable {stable.errors} of {stable.requests}"
        )
    if min(canary.requests, stable.requests) < min_requests:
        return found
    bound = stable.p99_bound
    slow, of_stable = canary.beyond(bound), stable.beyond(bound)
    timed, timed_of_stable = canary.within.get(math.inf, 0), stable.within.get(math.inf, 0)
    # Slower than stable's 99th percentile more often than 1 in 100, and than stable.
    if slow > (1 - _QUANTILE) * timed and _more_often(slow, timed, of_stable, timed_of_stable):
        found.append(
            f"p99 latency: {slow} of {timed} requests took longer than {bound * 1000:g} ms, "
            f"stable {of_stable} of {timed_of_stable}"
        )
    return found


def _more_often(events: int, of: int, others: int, of_others: int) -> bool:
    table = [[events, of - events], [others, of_others - others]]
    return bool(fisher_exact(table, alternative="greater").pvalue < _CHANCE)
