"""What Prometheus is told of a server, whichever of its workers is asked.

Made by app.py. The numbers are in counters.py; here they get names.
"""

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from serving.contract import Contract
from serving.counters import Counters, Distribution, Number
from serving.shared import Shared
from serving.source import Current

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_LOAD_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_STATUS_CLASSES = ("2xx", "3xx", "4xx", "5xx")


class EndpointMetrics:
    """The numbers of one endpoint. in_flight: of all endpoints together."""

    def __init__(self, counters: Counters, in_flight: Number) -> None:
        self.in_flight = in_flight
        self.by_class = [Number(counters) for _ in _STATUS_CLASSES]
        self.duration = Distribution(counters, _SECONDS)

    def observe(self, status: int, seconds: float) -> None:
        """Count one answered request."""
        self.by_class[status // 100 - 2].add(1)
        self.duration.observe(seconds)


class Metrics(Collector):
    """All metrics of a server, as this worker of it tells them.

    counters: where its workers count. current: what the server serves, if that may change.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, counters: Counters, current: Shared[Current] | None = None) -> None:
        self._counters = counters
        self._current = current
        self._endpoints: dict[str, EndpointMetrics] = {}
        self._model: dict[str, str] = {}
        self._in_flight = Number(counters, gauge=True)
        self._load_seconds = Distribution(counters, _LOAD_SECONDS)
        self.inference_seconds = Distribution(counters, _SECONDS)
        self.batch_rows = Distribution(counters, _ROWS)
        self.queue_seconds = Distribution(counters, _SECONDS)
        self.rows = Number(counters)
        self.open_failures = Number(counters)
        self.degraded = Number(counters, gauge=True)

    def endpoint(self, endpoint: str) -> EndpointMetrics:
        """Return the metrics of an endpoint; to be kept, and made before the fork."""
        if endpoint not in self._endpoints:
            self._endpoints[endpoint] = EndpointMetrics(self._counters, self._in_flight)
        return self._endpoints[endpoint]

    def model_loaded(self, mode: str, contract: Contract, seconds: float) -> None:
        """Say which model this worker serves from now on, and how long it took to open it."""
        self._load_seconds.observe(seconds)
        self._model = {
            "mode": mode,
            "name": contract.name,
            "version": contract.version,
            "sha256": contract.model.sha256,
        }

    def render(self) -> bytes:
        """Return the metrics of all workers in Prometheus's text format."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        yield from self._of_requests()
        yield from self._of_the_model()
        if self._current:
            yield from _of_following(self._current.get())

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: there is one collector, so no name is taken twice."""
        return iter(())

    def _of_requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "http_requests",
            "Requests answered, by endpoint and class of status.",
            labels=["endpoint", "status"],
        )
        duration = HistogramMetricFamily(
            "http_request_duration_seconds",
            "Time from the first look at a request to its answer, by endpoint.",
            labels=["endpoint"],
        )
        for name, endpoint in self._endpoints.items():
            for status, number in zip(_STATUS_CLASSES, endpoint.by_class, strict=True):
                requests.add_metric([name, status], number.total())
            duration.add_metric([name], _buckets(endpoint.duration), endpoint.duration.sum())
        yield requests
        yield duration
        yield GaugeMetricFamily(
            "http_requests_in_flight",
            "Requests that have come and are not answered yet, this one included.",
            value=self._in_flight.total(),
        )

    def _of_the_model(self) -> Iterator[Metric]:
        yield _histogram(
            "model_inference_seconds", "Time of one run of the model.", self.inference_seconds
        )
        yield _histogram("model_batch_rows", "Rows of one run of the model.", self.batch_rows)
        yield _histogram(
            "model_queue_seconds",
            "Time that a request waited for a run that it shares with others.",
            self.queue_seconds,
        )
        yield CounterMetricFamily(
            "model_rows", "Rows the model predicted.", value=self.rows.total()
        )
        info = GaugeMetricFamily(
            "model_info", "1 for the model that is served.", labels=list(self._model)
        )
        if self._model:
            info.add_metric(list(self._model.values()), 1)
        yield info
        yield _histogram(
            "model_load_seconds",
            "Time to open a model and run its golden rows, in each worker.",
            self._load_seconds,
        )
        yield CounterMetricFamily(
            "model_open_failures",
            "Times that a worker could not open what it was to serve.",
            value=self.open_failures.total(),
        )
        yield GaugeMetricFamily(
            "model_degraded",
            "1 while the last good model is served instead of the one that should be.",
            value=self.degraded.largest(),
        )


def _of_following(now: Current) -> Iterator[Metric]:
    """Yield what came of following an alias: facts of the server, the same in every worker."""
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


def _histogram(name: str, documentation: str, values: Distribution) -> Metric:
    return HistogramMetricFamily(
        name, documentation, buckets=_buckets(values), sum_value=values.sum()
    )


def _buckets(values: Distribution) -> list[tuple[str, float]]:
    """Return how many values were up to each bound, as Prometheus has it: all below included."""
    bounds = [*map(floatToGoString, values.bounds), "+Inf"]
    return list(zip(bounds, accumulate(values.counts()), strict=True))
