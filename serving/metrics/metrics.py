"""What is counted of a server, whichever of its workers does.

Made by app.py. The numbers are in counters.py; here they get a meaning, in exposition.py names.
"""

from artifact.contract import Contract
from serving.metrics.counters import Counters, Distribution, Number
from serving.workers.model_source import ServedVersion
from serving.workers.shared_value import SharedValue

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_LOAD_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
STATUS_CLASSES = ("2xx", "3xx", "4xx", "5xx")


class EndpointMetrics:
    """The numbers of one endpoint. in_flight: of all endpoints together."""

    def __init__(self, counters: Counters, in_flight: Number) -> None:
        self.in_flight = in_flight
        self.by_class = [Number(counters) for _ in STATUS_CLASSES]
        self.duration = Distribution(counters, _SECONDS)

    def observe(self, status: int, seconds: float) -> None:
        """Count one answered request."""
        self.by_class[status // 100 - 2].add(1)
        self.duration.observe(seconds)


class Metrics:
    """All that is counted of a server, and which model this worker of it serves.

    counters: where its workers count. current: what the server serves, if that may change.
    """

    def __init__(
        self, counters: Counters, current: SharedValue[ServedVersion] | None = None
    ) -> None:
        self._counters = counters
        self.current = current
        self.endpoints: dict[str, EndpointMetrics] = {}
        self.model: dict[str, str] = {}
        self.in_flight = Number(counters, gauge=True)
        self.load_seconds = Distribution(counters, _LOAD_SECONDS)
        self.inference_seconds = Distribution(counters, _SECONDS)
        self.batch_rows = Distribution(counters, _ROWS)
        self.queue_seconds = Distribution(counters, _SECONDS)
        self.rows = Number(counters)
        self.open_failures = Number(counters)
        self.degraded = Number(counters, gauge=True)

    def endpoint(self, endpoint: str) -> EndpointMetrics:
        """Return the metrics of an endpoint; to be kept, and made before the fork."""
        if endpoint not in self.endpoints:
            self.endpoints[endpoint] = EndpointMetrics(self._counters, self.in_flight)
        return self.endpoints[endpoint]

    def model_loaded(self, mode: str, contract: Contract, seconds: float) -> None:
        """Say which model this worker serves from now on, and how long it took to open it."""
        self.load_seconds.observe(seconds)
        self.model = {
            "mode": mode,
            "name": contract.name,
            "version": contract.version,
            "sha256": contract.model.sha256,
        }
