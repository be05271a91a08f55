"""Render the metrics of all workers in Prometheus's text format, with their public names.

Import this module late: importing prometheus_client would delay the start. The first request
for /metrics imports it.
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

from serving.metrics.counters import Histogram
from serving.metrics.metrics import STATUS_CLASSES, Metrics
from serving.workers.model_source import ServedVersion

CONTENT_TYPE = CONTENT_TYPE_LATEST


def render(metrics: Metrics) -> bytes:
    """Return the metrics of all workers in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_MetricsCollector(metrics))
    return generate_latest(registry)


class _MetricsCollector(Collector):
    """Converts Metrics to the metric families of prometheus_client."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Yield the current values of all metrics."""
        yield from _request_metrics(self._metrics)
        yield from _model_metrics(self._metrics)
        if self._metrics.current:
            yield from _alias_metrics(self._metrics.current.get())

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: the registry has one collector, so names cannot collide."""
        return iter(())


def _request_metrics(metrics: Metrics) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "http_requests",
        "Finished requests, by endpoint and class of status.",
        labels=["endpoint", "status"],
    )
    duration = HistogramMetricFamily(
        "http_request_duration_seconds",
        "Time from the end of a request's head to its response, by endpoint.",
        labels=["endpoint"],
    )
    for name, endpoint in metrics.endpoints.items():
        for status, counter in zip(STATUS_CLASSES, endpoint.by_class, strict=True):
            requests.add_metric([name, status], counter.total())
        duration.add_metric([name], _buckets(endpoint.duration), endpoint.duration.sum())
    yield requests
    yield duration
    yield GaugeMetricFamily(
        "http_requests_in_flight",
        "Requests that have started and not finished, including this one.",
        value=metrics.in_flight.total(),
    )


def _model_metrics(metrics: Metrics) -> Iterator[Metric]:
    yield _histogram(
        "model_inference_seconds", "Time of one run of the model.", metrics.inference_seconds
    )
    yield _histogram(
        "model_batch_rows", "Number of rows in one run of the model.", metrics.batch_rows
    )
    yield _histogram(
        "model_queue_seconds",
        "Time that a request waited for its batch to start.",
        metrics.queue_seconds,
    )
    yield CounterMetricFamily("model_rows", "Predicted rows.", value=metrics.rows.total())
    info = GaugeMetricFamily(
        "model_info", "1 for the model that is served.", labels=list(metrics.model)
    )
    if metrics.model:
        info.add_metric(list(metrics.model.values()), 1)
    yield info
    yield _histogram(
        "model_load_seconds",
        "Time to open a model and run its golden rows, per worker.",
        metrics.load_seconds,
    )
    yield CounterMetricFamily(
        "model_open_failures",
        "Failed attempts of a worker to open a model.",
        value=metrics.open_failures.total(),
    )
    yield GaugeMetricFamily(
        "model_degraded",
        "1 while the alias cannot be read, or the version that it names cannot be served.",
        # One worker that serves an older version is enough to degrade the server.
        value=metrics.degraded.max(),
    )


def _alias_metrics(current: ServedVersion) -> Iterator[Metric]:
    """Yield the metrics of polling an alias. They are facts of the server, not of one worker."""
    reloads = CounterMetricFamily(
        "model_reloads",
        "Attempts to load the version that the alias names, by outcome.",
        labels=["outcome"],
    )
    reloads.add_metric(["success"], current.reloads)
    reloads.add_metric(["failure"], current.reload_failures)
    yield reloads
    yield SummaryMetricFamily(
        "model_reload_seconds",
        "Time of the successful attempts to pull and verify a version that the alias names.",
        count_value=current.reloads,
        sum_value=current.reload_seconds,
    )
    yield GaugeMetricFamily(
        "model_alias_read_timestamp_seconds",
        "Unix time of the last successful read of the alias.",
        value=current.polled_at,
    )


def _histogram(name: str, documentation: str, values: Histogram) -> Metric:
    return HistogramMetricFamily(
        name, documentation, buckets=_buckets(values), sum_value=values.sum()
    )


def _buckets(values: Histogram) -> list[tuple[str, float]]:
    """Return upper bounds with cumulative counts, as Prometheus expects them."""
    bounds = [*map(floatToGoString, values.bounds), "+Inf"]
    return list(zip(bounds, accumulate(values.counts()), strict=True))
