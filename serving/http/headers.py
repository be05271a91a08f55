"""HTTP headers of responses, and the request id from the headers of a request.

Response headers are validated and serialized once, not once per response: uvicorn matches each
name and value against two regular expressions, which took as long as a run of a small model.
"""

import random
import re

from artifact.contract import Contract

Pair = tuple[bytes, bytes]

JSON = (b"content-type", b"application/json")
BINARY = (b"content-type", b"application/octet-stream")
CLOSE = (b"connection", b"close")
REQUEST_ID = b"x-request-id"
TRACEPARENT = b"traceparent"
# Visible ASCII, because the id is written into a response header and into log lines.
_VALID_ID = re.compile(rb"[!-~]{1,128}")
_VALID_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")
_CONTROL_CHARACTER = re.compile(rb"[\x00-\x1f\x7f]")


class Headers:
    """Response headers in the two forms that are sent. Immutable."""

    __slots__ = ("lines", "pairs")

    def __init__(self, *pairs: Pair) -> None:
        if any(_CONTROL_CHARACTER.search(text) for pair in pairs for text in pair):
            raise ValueError(f"headers: expected no control characters, got {pairs}")
        # For ASGI.
        self.pairs = pairs
        # For HTTP/1.1: each line ends with CRLF.
        self.lines = b"".join(b"%b: %b\r\n" % pair for pair in pairs)

    def plus(self, *more: Pair) -> "Headers":
        """Return these headers and more."""
        return Headers(*self.pairs, *more)


JSON_HEADERS = Headers(JSON)


class ModelHeaders:
    """The headers of a model's predictions, which tell the client what model made them."""

    __slots__ = ("binary", "json")

    def __init__(self, contract: Contract) -> None:
        model = (
            (b"model-name", contract.name.encode()),
            (b"model-version", contract.version.encode()),
            (b"model-sha256", contract.model.sha256.encode()),
        )
        # For bodies that are JSON only, and for bodies that contain binary data.
        self.json = Headers(JSON, *model)
        self.binary = Headers(BINARY, *model)


def request_id(client_id: bytes | None, traceparent: bytes | None) -> bytes:
    """Return the id of a request: X-Request-ID, else the trace id, else a random id.

    client_id, traceparent: the values of the headers X-Request-ID and traceparent, None without.
    A value that is not valid is ignored. Source: W3C Trace Context, "traceparent Header".
    """
    if client_id and _VALID_ID.fullmatch(client_id):
        return client_id
    if traceparent and (trace := _VALID_TRACEPARENT.fullmatch(traceparent)):
        return trace[1]
    # The id is not a secret, so a fast generator will do. Workers generate different ids, because
    # Python seeds the generator again after a fork.
    return random.getrandbits(128).to_bytes(16, "big").hex().encode()
