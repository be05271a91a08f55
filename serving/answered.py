"""What is noted of each request: metrics always, a line in the log if it is wanted or went wrong.

Used by endpoint.py for the hot paths and by app.py for all others. A line has the request's id,
which the client gave or is told, and never what was asked or answered.
"""

import random
import re
import time
from collections.abc import Iterable

from serving import logs
from serving.metrics import EndpointMetrics

REQUEST_ID = b"x-request-id"
TRACEPARENT = b"traceparent"
# Visible ASCII: it goes into a header and into logs.
_USABLE = re.compile(rb"[!-~]{1,128}")
_TRACE = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")
_LONGEST_PATH = 200


class Answered:
    """The requests of one endpoint.

    access_log: whether to log each; otherwise only those that are the server's fault.
    """

    def __init__(self, metrics: EndpointMetrics, *, access_log: bool) -> None:
        self._metrics = metrics
        self._access_log = access_log

    def begin(self) -> float:
        """Note that a request came, and return when."""
        self._metrics.in_flight.add(1)
        return time.perf_counter()

    def end(self, began: float, status: int, method: str, path: str, request_id: bytes) -> None:
        """Note with which status a request was answered."""
        seconds = time.perf_counter() - began
        self._metrics.in_flight.add(-1)
        self._metrics.observe(status, seconds)
        if self._access_log or status >= 500:
            (logs.error if status >= 500 else logs.info)(
                "request",
                method=method,
                path=path[:_LONGEST_PATH],
                status=status,
                seconds=round(seconds, 6),
                request_id=request_id.decode(),
            )

    def abandon(self) -> None:
        """Note that the client went away before it was answered."""
        self._metrics.in_flight.add(-1)


def request_id(given: bytes, traceparent: bytes) -> bytes:
    """Return the id of a request: X-Request-ID, else the trace's, else one of our own.

    given, traceparent: the values of the headers, b"" without one. What is not usable in a
    header and a log line is as good as none. Source: W3C Trace Context, "traceparent Header".
    """
    if given and _USABLE.fullmatch(given):
        return given
    if traceparent and (trace := _TRACE.fullmatch(traceparent)):
        return trace[1]
    # Not a secret. Each worker has numbers of its own: Python seeds again after a fork.
    return b"%032x" % random.getrandbits(128)


def request_id_in(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the id of a request with these headers."""
    found = dict(headers)
    return request_id(found.get(REQUEST_ID, b""), found.get(TRACEPARENT, b""))
