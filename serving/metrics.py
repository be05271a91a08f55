"""What Prometheus is told, and what it costs: children are looked up once, never per request.

Made by app.py. With several workers each writes to files of its own and any of them
answers for all (prometheus_client's multiprocess mode, switched on by process.py).
"""

import os

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from serving.contract import Contract

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
_STATUS_CLASSES = ("2xx", "3xx", "4xx", "5xx")


class EndpointMetrics:
    """The metrics of one endpoint, each child looked up beforehand."""

    def __init__(self, endpoint: str, requests: Counter, duration: Histogram) -> None:
        self._by_class = [requests.labels(endpoint, status) for status in _STATUS_CLASSES]
        self._duration = duration.labels(endpoint)

    def observe(self, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._by_class[status // 100 - 2].inc()
        self._duration.observe(seconds)


class Metrics:
    """All metrics of one process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
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

    def endpoint(self, endpoint: str) -> EndpointMetrics:
        """Return the metrics of an endpoint; to be kept, not asked for at each request."""
        return EndpointMetrics(endpoint, self._requests, self._duration)

    def model_loaded(self, mode: str, contract: Contract) -> None:
        """Say which model this process serves from now on."""
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
        return generate_latest(every_worker)
