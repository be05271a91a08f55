"""The hot path: what POST /predict, /predict/label and /v2/…/infer share, as an ASGI callable.

app.py dispatches to endpoints before FastAPI's stack, which costs 93 us a request where this
way costs 3 (DESIGN: "The hot path"). What they answer is predict.py's and infer.py's. They are
documented in /openapi.json all the same.
"""

import asyncio
import json
import traceback
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from starlette.types import Message, Receive, Scope, Send

from serving import logs
from serving.answered import REQUEST_ID, TRACEPARENT, Answered, request_id
from serving.encoding import decoded, encoded, is_worth
from serving.errors import RequestError

Headers = list[tuple[bytes, bytes]]
_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
_JSON_BYTES = b"inference-header-content-length"


class Call(NamedTuple):
    """A request, its body not read yet.

    json_bytes: what it says of how many bytes of the body are JSON, None where it does not.
    """

    path: str
    read: Callable[[], Awaitable[bytes]]
    json_bytes: bytes | None


class Answer(NamedTuple):
    """What a request is answered: JSON; only json_bytes of it are where binary data follows."""

    headers: Headers
    body: bytes
    json_bytes: int | None = None


class Head(NamedTuple):
    """What the headers of a request say.

    length: of the body, 0 where that is not said. json_bytes: as Call has it.
    """

    request_id: bytes
    length: int
    encoding: bytes
    accepted: bytes
    json_bytes: bytes | None


class ClientDisconnected(Exception):  # noqa: N818 - nobody's error
    """The client went away before its request was complete."""


class Endpoint:
    """A path that answers POST; whatever happens, with JSON.

    answer: may raise RequestError.
    """

    def __init__(
        self,
        answer: Callable[[Call], Awaitable[Answer]],
        answered: Answered,
        *,
        max_body_bytes: int,
    ) -> None:
        self._answer = answer
        self._answered = answered
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = self._answered.begin()
        method, path, head = scope["method"], scope["path"], _head(scope["headers"])
        try:
            status, headers, body = await self._respond(method, path, head, receive)
        except ClientDisconnected:
            self._answered.abandon()
            return
        except BaseException as error:  # noqa: BLE001 - all that is raised here has an answer
            refused = _refusal(path, head.request_id, error)
            status, body = refused.status, error_body(refused.message)
            headers = [_JSON, *_encoded(refused.headers)]
        headers += ((b"content-length", b"%d" % len(body)), (REQUEST_ID, head.request_id))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self._answered.end(began, status, method, path, head.request_id)

    async def _respond(
        self, method: str, path: str, head: Head, receive: Receive
    ) -> tuple[int, Headers, bytes]:
        if method != "POST":
            raise method_not_allowed(path, method, "POST")

        async def read() -> bytes:
            body = await read_body(receive, head.length, self._max_body_bytes)
            return decoded(body, head.encoding, self._max_body_bytes) if head.encoding else body

        headers, body, json_bytes = await self._answer(Call(path, read, head.json_bytes))
        if json_bytes is None:
            headers = [_JSON, *headers]
        else:
            headers = [_BINARY, (_JSON_BYTES, b"%d" % json_bytes), *headers]
        if head.accepted and is_worth(body, head.accepted):
            body, more = await encoded(body)
            headers += more
        return 200, headers, body


async def read_body(receive: Receive, announced: int, max_bytes: int) -> bytes:
    """Return a request's body, whole. announced: its Content-Length, 0 without one.

    Raises RequestError 413 once more than max_bytes came or were announced, and
    ClientDisconnected.
    """
    message = await receive()
    body: bytes = _body(message)
    if message.get("more_body", False):
        if announced > max_bytes:
            raise _too_large(max_bytes, str(announced))
        pieces, size = [body], len(body)
        while message.get("more_body", False) and size <= max_bytes:
            message = await receive()
            pieces.append(_body(message))
            size += len(pieces[-1])
        body = b"".join(pieces)
    if len(body) > max_bytes:
        raise _too_large(max_bytes, "more")
    return body


def error_body(message: str) -> bytes:
    """Return the one form all errors have."""
    # A lone surrogate, which JSON can escape and UTF-8 cannot write, comes back as "?".
    return json.dumps({"error": message}, ensure_ascii=False).encode(errors="replace")


def method_not_allowed(path: str, method: str, allowed: str) -> RequestError:
    """Return the error for a method that a path does not have."""
    return RequestError(405, f"{path}: expected {allowed}, got {method}", {"allow": allowed})


def _head(headers: Headers) -> Head:
    length, encoding, accepted, given, traceparent = 0, b"", b"", b"", b""
    json_bytes: bytes | None = None
    for name, value in headers:
        if name == b"content-length":
            # The server has checked that it is a number.
            length = int(value)
        elif name == b"accept-encoding":
            accepted = value
        elif name == b"content-encoding":
            encoding = value
        elif name == REQUEST_ID:
            given = value
        elif name == TRACEPARENT:
            traceparent = value
        elif name == _JSON_BYTES:
            json_bytes = value
    return Head(request_id(given, traceparent), length, encoding, accepted, json_bytes)


def _refusal(path: str, asked: bytes, error: BaseException) -> RequestError:
    """Return what a client is told. Raises what is not for clients: the end of the process."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return RequestError(503, "the server stopped before the request was complete")
    if not isinstance(error, Exception):
        raise error
    # Where it failed, not what was said: onnxruntime's words may hold an input's values.
    frames = [" ".join(frame.split()) for frame in traceback.format_tb(error.__traceback__)]
    logs.error(
        "request_failed",
        endpoint=path,
        request_id=asked.decode(),
        error=type(error).__name__,
        frames=frames,
    )
    return RequestError(500, "internal error")


def _body(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    body: bytes = message.get("body", b"")
    return body


def _too_large(max_bytes: int, came: str) -> RequestError:
    return RequestError(413, f"body: expected at most {max_bytes} bytes, got {came}")


def _encoded(headers: dict[str, str]) -> Headers:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
