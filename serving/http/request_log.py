"""What is noted of each request: metrics always, a line in the log if it is wanted or went wrong.

Used by endpoint.py for the hot paths and by app.py for all others. A line has the request's id,
which the client gave or is told, and never what was asked or answered.
"""

import time

from starlette.types import Scope

from serving import logs
from serving.http.headers import REQUEST_ID, TRACEPARENT, request_id
from serving.metrics.metrics import EndpointMetrics

_LONGEST_PATH = 200


class Request:
    """What is known of a request once its head is there.

    headers: by their names, in lower case. began: when it was first looked at.
    """

    __slots__ = ("began", "headers", "method", "path", "request_id")

    def __init__(self, scope: Scope) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        self.began = time.perf_counter()
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers = headers
        self.request_id = request_id(headers.get(REQUEST_ID), headers.get(TRACEPARENT))


class Answered:
    """The requests of one endpoint.

    access_log: whether to log each; otherwise only those that are the server's fault.
    """

    def __init__(self, metrics: EndpointMetrics, *, access_log: bool) -> None:
        self._metrics = metrics
        self._access_log = access_log

    def begin(self) -> None:
        """Note that a request came."""
        self._metrics.in_flight.add(1)

    def end(self, request: Request, status: int) -> None:
        """Note with which status a request was answered."""
        seconds = time.perf_counter() - request.began
        self._metrics.in_flight.add(-1)
        self._metrics.observe(status, seconds)
        if self._access_log or status >= 500:
            (logs.error if status >= 500 else logs.info)(
                "request",
                method=request.method,
                path=request.path[:_LONGEST_PATH],
                status=status,
                seconds=round(seconds, 6),
                request_id=request.request_id.decode(),
            )

    def abandon(self) -> None:
        """Note that the client went away before it was answered."""
        self._metrics.in_flight.add(-1)
