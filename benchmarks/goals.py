"""The goals of the benchmark: bounds for ratios of two systems within one run.

Both values of a ratio are from the same round, so other load on the machine affected both.
Absolute numbers hold for one machine at one time; ratios are comparable.
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
    """One measurement of a system: a window of load, a start, or a reading of its memory."""

    scenario: str
    system: str
    round: int
    values: Mapping[str, float]
    # The reason to ignore it, None if it counts.
    dropped: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some values."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """Return the spread of values, None without values."""
        ordered = sorted(values)
        if not ordered:
            return None
        if len(ordered) == 1:
            return cls(ordered[0], ordered[0], ordered[0], 1)
        low, _, high = quantiles(ordered, n=4, method="inclusive")
        return cls(median(ordered), low, high, len(ordered))


@dataclass(frozen=True)
class Goal:
    """A bound for the ratio of two systems in one quantity of one scenario."""

    about: str
    scenario: str
    quantity: Quantity
    of: str
    against: str
    bound: float
    kind: Literal["at least", "at most"]

    def ratio(self, measured: Iterable[Measured]) -> Spread | None:
        """Return the spread of the ratios over all rounds in which both measurements count."""
        ours, theirs = (
            values(measured, self.scenario, name, self.quantity) for name in (self.of, self.against)
        )
        return Spread.of(ours[at] / theirs[at] for at in ours if theirs.get(at))

    def verdict(self, ratio: Spread | None) -> Verdict:
        """Return the verdict; "within noise" if the better quartile reaches the bound."""
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
    """Return the values of a quantity of one system by round, without dropped ones."""
    return {
        each.round: each.values[quantity]
        for each in measured
        if (each.scenario, each.system) == (scenario, system)
        and each.dropped is None
        and quantity in each.values
    }


def _faster(about: str, scenario: str, of: str, against: str, bound: float) -> Goal:
    return Goal(about, scenario, "requests_per_second", of, against, bound, "at least")


GOALS = (
    _faster(
        "/predict, 64 connections, against uvicorn_baseline",
        "predict", "this", "uvicorn_baseline", 0.60,
    ),
    _faster(
        "v2 infer, JSON, 64 connections, against uvicorn_baseline",
        "infer", "this", "uvicorn_baseline", 0.50,
    ),
    Goal(
        "one connection, median latency, against uvicorn_baseline",
        "latency", "latency_p50", "this", "uvicorn_baseline", 1.7, "at most",
    ),
    _faster(
        "/predict, against asgi_onnxruntime, which does not batch",
        "predict", "this", "asgi_onnxruntime", 1.25,
    ),
    _faster("/predict, against the code of the MLSDP book", "predict", "this", "mlsdp_book", 7),
    _faster("/predict, against mosec", "predict", "this", "mosec", 3.5),
    _faster(
        "/predict, against mosec with its default of one request per batch",
        "predict", "this", "mosec-single", 3.5,
    ),
    _faster("/predict, against KServe", "predict", "this", "kserve", 8),
    _faster("/predict, against MLServer", "predict", "this", "mlserver", 15),
    _faster("/predict, against LitServe", "predict", "this", "litserve", 18),
    _faster("/predict, against BentoML", "predict", "this", "bentoml", 30),
    _faster(
        "a 3 ms model, 64 connections, against a run on the event loop",
        "slow", "this", "asgi_onnxruntime", 4.5,
    ),
    Goal(
        "health's 99th percentile meanwhile, against a run on the event loop",
        "slow", "health_p99", "this", "asgi_onnxruntime", 0.25, "at most",
    ),
    _faster("32 rows of 784 FP32, binary against JSON", "wide", "binary", "json", 5),
    Goal(
        "start to first correct prediction, against asgi_onnxruntime",
        "start", "start_seconds", "model_in_image", "asgi_onnxruntime", 1.6, "at most",
    ),
    Goal(
        "the same for model_load from a local store, against model_in_image",
        "start", "start_seconds", "model_load", "model_in_image", 1.10, "at most",
    ),
    Goal(
        "memory of one worker, against asgi_onnxruntime",
        "memory", "memory_bytes", "one worker", "asgi_onnxruntime", 1.5, "at most",
    ),
    Goal(
        "memory of four workers, against one",
        "memory", "memory_bytes", "four workers", "one worker", 2, "at most",
    ),
    Goal(
        "peak memory, a model of 500 MB pulled, verified, loaded, against asgi_onnxruntime",
        "sizes", "peak_bytes", "model_load, 500 MB", "asgi_onnxruntime, 500 MB", 1.2, "at most",
    ),
    _faster("two workers on two cores, against one", "workers", "two", "one", 1.7),
)  # fmt: skip
