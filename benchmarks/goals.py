"""What this server has to reach, and whether it did, judged by ratios within one run.

A ratio is of two systems in the same round, so what the machine did meanwhile befell both. The
absolute numbers of a run are of one machine and one hour; ratios carry over.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Literal

Quantity = Literal[
    "requests_per_second",
    "latency_p50",
    "health_p99",
    "start_seconds",
    "memory_bytes",
    "peak_bytes",
]
Verdict = Literal["reached", "within noise", "missed", "not measured"]


@dataclass(frozen=True)
class Measured:
    """One window, start or look: what was found of whom, in which round.

    dropped: why it does not count.
    """

    scenario: str
    system: str
    round: int
    values: Mapping[str, float]
    dropped: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Spread:
    """The middle of some values, and the quarters around it."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """Return the spread of values, None where there are none."""
        found = sorted(values)
        if not found:
            return None
        if len(found) == 1:
            return cls(found[0], found[0], found[0], 1)
        low, _, high = quantiles(found, n=4, method="inclusive")
        return cls(median(found), low, high, len(found))


@dataclass(frozen=True)
class Goal:
    """A bound of the ratio of one quantity of two systems, both of one scenario."""

    about: str
    scenario: str
    quantity: Quantity
    of: str
    against: str
    bound: float
    kind: Literal["at least", "at most"]

    def ratio(self, measured: Iterable[Measured]) -> Spread | None:
        """Return the ratios of all rounds in which both counted."""
        ours, theirs = (
            values(measured, self.scenario, name, self.quantity) for name in (self.of, self.against)
        )
        return Spread.of(ours[at] / theirs[at] for at in ours if theirs.get(at))

    def verdict(self, ratio: Spread | None) -> Verdict:
        """Judge a ratio: within noise is a median that misses where the better quarter does not."""
        if ratio is None:
            return "not measured"
        if self.kind == "at least":
            reached, nearly = ratio.median >= self.bound, ratio.high >= self.bound
        else:
            reached, nearly = ratio.median <= self.bound, ratio.low <= self.bound
        return "reached" if reached else "within noise" if nearly else "missed"


def values(
    measured: Iterable[Measured], scenario: str, system: str, quantity: str
) -> dict[int, float]:
    """Return what counts of one system's quantity, by round."""
    return {
        one.round: one.values[quantity]
        for one in measured
        if (one.scenario, one.system) == (scenario, system)
        and one.dropped is None
        and quantity in one.values
    }


def _faster(about: str, scenario: str, of: str, against: str, bound: float) -> Goal:
    return Goal(about, scenario, "requests_per_second", of, against, bound, "at least")


GOALS = (
    _faster("/predict, 64 connections, against the limit", "predict", "this", "limit", 0.60),
    _faster("v2 infer, JSON, 64 connections, against the limit", "infer", "this", "limit", 0.50),
    Goal(
        "one connection, median latency, against the limit's",
        "latency", "latency_p50", "this", "limit", 1.7, "at most",
    ),
    _faster("/predict, against bare, which does not gather", "predict", "this", "bare", 1.25),
    _faster("/predict, against the book's code", "predict", "this", "book", 7),
    _faster("/predict, against mosec", "predict", "this", "mosec", 3.5),
    _faster("/predict, against mosec as it is by default", "predict", "this", "mosec-single", 3.5),
    _faster("/predict, against KServe", "predict", "this", "kserve", 8),
    _faster("/predict, against MLServer", "predict", "this", "mlserver", 15),
    _faster("/predict, against LitServe", "predict", "this", "litserve", 18),
    _faster("/predict, against BentoML", "predict", "this", "bentoml", 30),
    _faster("a 3 ms model, 64 connections, against inline", "slow", "this", "bare", 4.5),
    Goal(
        "health's 99th percentile meanwhile, against inline",
        "slow", "health_p99", "this", "bare", 0.25, "at most",
    ),
    _faster("32 rows of 784 FP32, binary against JSON", "wide", "binary", "json", 5),
    Goal(
        "start to first right prediction, against bare",
        "start", "start_seconds", "model_in_image", "bare", 1.6, "at most",
    ),
    Goal(
        "the same of model_load from a local store, against model_in_image",
        "start", "start_seconds", "model_load", "model_in_image", 1.10, "at most",
    ),
    Goal(
        "memory of one worker, against bare",
        "memory", "memory_bytes", "one worker", "bare", 1.5, "at most",
    ),
    Goal(
        "memory of four workers, against one",
        "memory", "memory_bytes", "four workers", "one worker", 2, "at most",
    ),
    Goal(
        "peak memory, a model of 500 MB pulled, verified, loaded, against bare",
        "sizes", "peak_bytes", "model_load, 500 MB", "bare, 500 MB", 1.2, "at most",
    ),
    _faster("two workers on two cores, against one", "workers", "two", "one", 1.7),
)  # fmt: skip
