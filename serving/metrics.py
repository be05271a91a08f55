"""What Prometheus is told, and what it costs: children are looked up once, never per request.

Made by app.py. With several workers each writes to files of its own and any of them
answers for all (prometheus_client's multiprocess mode, switched on by process.py).
"""

import os
from collections.abc import Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from serving.contract import Contract
from serving.shared import Shared
from serving.source import Current

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
_LOAD_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_STATUS_CLASSES = ("2xx", "3xx", "4xx", "5xx")


class EndpointMetrics:
    """The metrics of one endpoint, each child looked up beforehand.

    in_flight: of all endpoints together.
    """

    def __init__(
        self, endpoint: str, requests: Counter, duration: Histogram, in_flight: Gauge
    ) -> None:
        self.in_flight = in_flight
        self._by_class = [requests.labels(endpoint, status) for status in _STATUS_CLASSES]
        self._duration = duration.labels(endpoint)

    def observe(self, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._by_class[status // 100 - 2].inc()
        self._duration.observe(seconds)


class Following(Collector):
    """What came of following an alias: facts of the server, the same in every worker."""

    def __init__(self, current: Shared[Current]) -> None:
        self._current = current

    def collect(self) -> Iterator[Metric]:
        """Return the metrics as they are now."""
        now = self._current.get()
        moves = CounterMetricFamily(
            "model_reloads", "Tries to follow the alias, by outcome.", labels=["outcome"]
        )
        moves.add_metric(["success"], now.moves)
        moves.add_metric(["failure"], now.failures)
        yield moves
        yield SummaryMetricFamily(
            "model_reload_seconds",
            "Time to pull and verify what the alias names, where it came to be served.",
            count_value=now.moves,
            sum_value=now.moves_seconds,
        )
        yield GaugeMetricFamily(
            "model_alias_read_timestamp_seconds",
            "When the alias was last read.",
            value=now.polled_at,
        )


class Metrics:
    """All metrics of one process.

    current: what the server serves, if that may change.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, current: Shared[Current] | None = None) -> None:
        disable_created_metrics()
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "http_requests",
            "Requests answered, by endpoint and class of status.",
            ["endpoint", "status"],
            registry=self._registry,
        )
        self._duration = Histogram(
            "http_request_duration_seconds",
            "Time from the first look at a request to its answer, by endpoint.",
            ["endpoint"],
            registry=self._registry,
            buckets=_SECONDS,
        )
        self._in_flight = Gauge(
            "http_requests_in_flight",
            "Requests that have come and are not answered yet, this one included.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self.inference_seconds = Histogram(
            "model_inference_seconds",
            "Time of one run of the model.",
            registry=self._registry,
            buckets=_SECONDS,
        )
        self.rows = Counter("model_rows", "Rows the model predicted.", registry=self._registry)
        self._model_info = Gauge(
            "model_info",
            "1 for the model that is served, 0 for one that was.",
            ["mode", "name", "version", "sha256"],
            registry=self._registry,
            multiprocess_mode="livemax",
        )
        self._served: Gauge | None = None
        self._load_seconds = Histogram(
            "model_load_seconds",
            "Time to open a model and run its golden rows, in each worker.",
            registry=self._registry,
            buckets=_LOAD_SECONDS,
        )
        self.open_failures = Counter(
            "model_open_failures",
            "Times that a worker could not open what it was to serve.",
            registry=self._registry,
        )
        self._following = None
        if current is not None:
            self._following = Following(current)
            self._registry.register(self._following)
        self.degraded = Gauge(
            "model_degraded",
            "1 while the last good model is served instead of the one that should be.",
            registry=self._registry,
            multiprocess_mode="livemax",
        )

    def endpoint(self, endpoint: str) -> EndpointMetrics:
        """Return the metrics of an endpoint; to be kept, not asked for at each request."""
        return EndpointMetrics(endpoint, self._requests, self._duration, self._in_flight)

    def model_loaded(self, mode: str, contract: Contract, seconds: float) -> None:
        """Say which model this process serves from now on, and how long it took to open it."""
        self._load_seconds.observe(seconds)
        if self._served is not None:
            self._served.set(0)
        self._served = self._model_info.labels(
            mode, contract.name, contract.version, contract.model.sha256
        )
        self._served.set(1)

    def render(self) -> bytes:
        """Return the metrics of all workers in Prometheus's text format."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        every_worker = CollectorRegistry()
        MultiProcessCollector(every_worker)
        if self._following:
            every_worker.register(self._following)
        return generate_latest(every_worker)
