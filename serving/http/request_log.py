"""Record each request: count it in the metrics, and write a line to the access log.

Without ACCESS_LOG only responses with status 5xx are logged. A line has the request's id, and
never inputs or predictions.
"""

import time

from starlette.types import Scope

from serving import logs
from serving.http.headers import REQUEST_ID, TRACEPARENT, request_id
from serving.metrics.metrics import EndpointMetrics

_MAX_PATH_CHARACTERS = 200


class RequestContext:
    """The head of a request, its id, and its start time.

    Attributes:
        headers: by name in lower case; of repeated headers the last one.
        request_id: from the client's headers, or generated.
        started_at: time.perf_counter() when the head was complete.
    """

    __slots__ = ("headers", "method", "path", "request_id", "started_at")

    def __init__(self, scope: Scope) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        self.started_at = time.perf_counter()
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers = headers
        self.request_id = request_id(headers.get(REQUEST_ID), headers.get(TRACEPARENT))


class RequestRecorder:
    """Records the requests of one endpoint.

    access_log: log every request; otherwise only responses with status 5xx.
    """

    def __init__(self, metrics: EndpointMetrics, *, access_log: bool) -> None:
        self._metrics = metrics
        self._access_log = access_log

    def started(self) -> None:
        """Count a new request as in flight."""
        self._metrics.in_flight.add(1)

    def finished(self, request: RequestContext, status: int) -> None:
        """Count a request whose response is ready, and log it."""
        seconds = time.perf_counter() - request.started_at
        self._metrics.in_flight.add(-1)
        self._metrics.observe(status, seconds)
        if self._access_log or status >= 500:
            (logs.error if status >= 500 else logs.info)(
                "request",
                method=request.method,
                path=request.path[:_MAX_PATH_CHARACTERS],
                status=status,
                seconds=round(seconds, 6),
                request_id=request.request_id.decode(),
            )

    def disconnected(self) -> None:
        """Stop counting a request as in flight because its client disconnected."""
        self._metrics.in_flight.add(-1)
