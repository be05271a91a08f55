"""HTTP headers: those of an answer, and the request id that is in a request's.

An answer's are written once where many have the same: uvicorn's look at each name and value by
two regular expressions took as long as running the model did.
"""

import random
import re

Pair = tuple[bytes, bytes]

JSON = (b"content-type", b"application/json")
BINARY = (b"content-type", b"application/octet-stream")
CLOSE = (b"connection", b"close")
REQUEST_ID = b"x-request-id"
TRACEPARENT = b"traceparent"
# Visible ASCII: it goes into a header and into logs.
_USABLE = re.compile(rb"[!-~]{1,128}")
_TRACE = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


class Headers:
    """Headers of answers. pairs: as ASGI has them. lines: as HTTP/1.1 does."""

    __slots__ = ("lines", "pairs")

    def __init__(self, *pairs: Pair) -> None:
        if any(_CONTROL.search(text) for pair in pairs for text in pair):
            raise ValueError(f"headers: expected no control characters, got {pairs}")
        self.pairs = pairs
        self.lines = b"".join(b"%b: %b\r\n" % pair for pair in pairs)

    def plus(self, *more: Pair) -> "Headers":
        """Return these and more."""
        return Headers(*self.pairs, *more)


# What most answers have.
JSON_HEADERS = Headers(JSON)


def request_id(given: bytes | None, traceparent: bytes | None) -> bytes:
    """Return the id of a request: X-Request-ID, else the trace's, else one of our own.

    given, traceparent: the values of the headers, None without one. What is not usable in a
    header and a log line is as good as none. Source: W3C Trace Context, "traceparent Header".
    """
    if given and _USABLE.fullmatch(given):
        return given
    if traceparent and (trace := _TRACE.fullmatch(traceparent)):
        return trace[1]
    # Not a secret. Each worker has numbers of its own: Python seeds again after a fork.
    return random.getrandbits(128).to_bytes(16, "big").hex().encode()
