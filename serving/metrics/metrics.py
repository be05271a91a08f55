"""The metrics of a server: what is counted, in which buckets, over all workers.

counters.py stores the numbers, prometheus.py gives them their public names.
"""

from artifact.contract import Contract
from serving.metrics.counters import Counter, Counters, Gauge, Histogram
from serving.workers.model_source import ServedVersion
from serving.workers.shared_value import SharedValue

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_LOAD_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
STATUS_CLASSES = ("2xx", "3xx", "4xx", "5xx")


class EndpointMetrics:
    """The metrics of one endpoint."""

    def __init__(self, counters: Counters, in_flight: Gauge) -> None:
        # Shared by all endpoints: a request in flight may not have a route yet.
        self.in_flight = in_flight
        self.by_class = [Counter(counters) for _ in STATUS_CLASSES]
        self.duration = Histogram(counters, _SECONDS)

    def observe(self, status: int, seconds: float) -> None:
        """Count a finished request."""
        self.by_class[status // 100 - 2].add(1)
        self.duration.observe(seconds)


class Metrics:
    """All metrics of a server.

    current: the artifact that the server serves; None if it cannot change.
    """

    def __init__(
        self, counters: Counters, current: SharedValue[ServedVersion] | None = None
    ) -> None:
        self._counters = counters
        self.current = current
        self.endpoints: dict[str, EndpointMetrics] = {}
        # Labels of model_info. Of this worker: during a reload, workers differ for a moment.
        self.model: dict[str, str] = {}
        self.in_flight = Gauge(counters)
        self.load_seconds = Histogram(counters, _LOAD_SECONDS)
        self.inference_seconds = Histogram(counters, _SECONDS)
        self.batch_rows = Histogram(counters, _ROWS)
        self.queue_seconds = Histogram(counters, _SECONDS)
        self.rows = Counter(counters)
        self.open_failures = Counter(counters)
        self.degraded = Gauge(counters)

    def endpoint(self, endpoint: str) -> EndpointMetrics:
        """Return the metrics of an endpoint. Call before the fork, which fixes the memory."""
        if endpoint not in self.endpoints:
            self.endpoints[endpoint] = EndpointMetrics(self._counters, self.in_flight)
        return self.endpoints[endpoint]

    def model_loaded(self, mode: str, contract: Contract, seconds: float) -> None:
        """Record the model that this worker serves from now on, and the time to open it."""
        self.load_seconds.observe(seconds)
        self.model = {
            "mode": mode,
            "name": contract.name,
            "version": contract.version,
            "sha256": contract.model.sha256,
        }
