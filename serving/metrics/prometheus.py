"""What Prometheus is told: the metrics by their names.

Imported by the first request for /metrics: a start does not wait for it.
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

from serving.metrics.counters import Distribution
from serving.metrics.metrics import STATUS_CLASSES, Metrics
from serving.workers.model_source import ServedVersion

CONTENT_TYPE = CONTENT_TYPE_LATEST


def exposition(metrics: Metrics) -> bytes:
    """Return the metrics of all workers in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_Exposed(metrics))
    return generate_latest(registry)


class _Exposed(Collector):
    """Metrics as prometheus_client asks for them."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        yield from _of_requests(self._metrics)
        yield from _of_the_model(self._metrics)
        if self._metrics.current:
            yield from _of_following(self._metrics.current.get())

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: there is one collector, so no name is taken twice."""
        return iter(())


def _of_requests(metrics: Metrics) -> Iterator[Metric]:
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
    for name, endpoint in metrics.endpoints.items():
        for status, number in zip(STATUS_CLASSES, endpoint.by_class, strict=True):
            requests.add_metric([name, status], number.total())
        duration.add_metric([name], _buckets(endpoint.duration), endpoint.duration.sum())
    yield requests
    yield duration
    yield GaugeMetricFamily(
        "http_requests_in_flight",
        "Requests that have come and are not answered yet, this one included.",
        value=metrics.in_flight.total(),
    )


def _of_the_model(metrics: Metrics) -> Iterator[Metric]:
    yield _histogram(
        "model_inference_seconds", "Time of one run of the model.", metrics.inference_seconds
    )
    yield _histogram("model_batch_rows", "Rows of one run of the model.", metrics.batch_rows)
    yield _histogram(
        "model_queue_seconds",
        "Time that a request waited for a run that it shares with others.",
        metrics.queue_seconds,
    )
    yield CounterMetricFamily("model_rows", "Rows the model predicted.", value=metrics.rows.total())
    info = GaugeMetricFamily(
        "model_info", "1 for the model that is served.", labels=list(metrics.model)
    )
    if metrics.model:
        info.add_metric(list(metrics.model.values()), 1)
    yield info
    yield _histogram(
        "model_load_seconds",
        "Time to open a model and run its golden rows, in each worker.",
        metrics.load_seconds,
    )
    yield CounterMetricFamily(
        "model_open_failures",
        "Times that a worker could not open what it was to serve.",
        value=metrics.open_failures.total(),
    )
    yield GaugeMetricFamily(
        "model_degraded",
        "1 while the last good model is served instead of the one that should be.",
        value=metrics.degraded.largest(),
    )


def _of_following(now: ServedVersion) -> Iterator[Metric]:
    """Yield what came of following an alias: facts of the server, the same in every worker."""
    moves = CounterMetricFamily(
        "model_reloads", "Tries to follow the alias, by outcome.", labels=["outcome"]
    )
    moves.add_metric(["success"], now.reloads)
    moves.add_metric(["failure"], now.reload_failures)
    yield moves
    yield SummaryMetricFamily(
        "model_reload_seconds",
        "Time to pull and verify what the alias names, where it came to be served.",
        count_value=now.reloads,
        sum_value=now.reload_seconds,
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
