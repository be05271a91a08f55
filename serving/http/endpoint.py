"""The hot path: what POST /predict, /predict/label and /v2/…/infer share.

A request whose body has come is an exchange. Its codec (predict.py, infer.py) says what to run,
the batcher runs it together with what else has come, the codec says what to answer. All that is
done in callbacks: a task for each request, its coroutines and ASGI's messages cost as much as
the rest together. protocol.py hands in what came whole; what comes in pieces, or from another
server, comes as ASGI has it. Documented in /openapi.json all the same.
"""

import asyncio
import json
import traceback
from abc import ABC, abstractmethod
from functools import partial
from typing import Generic, Protocol, TypeVar

from starlette.types import Message, Receive, Scope, Send

from artifact.contract import Array
from serving import logs
from serving.errors import RequestError
from serving.http.compression import (
    GZIP_HEADERS,
    MAX_INLINE_BYTES,
    compress,
    decompress,
    should_compress,
)
from serving.http.headers import JSON_HEADERS, REQUEST_ID, Headers, Pair
from serving.http.request_log import RequestContext, RequestRecorder
from serving.inference.batcher import Batcher, Result
from serving.inference.model import Model
from serving.inference.request import InferenceRequest

AnyAsked = TypeVar("AnyAsked", bound=InferenceRequest)


class Operation(Protocol[AnyAsked]):
    """What an endpoint's requests and answers look like."""

    def decode(self, model: Model, exchange: "HttpExchange") -> AnyAsked:
        """Return what a request asks of the model. Raises RequestError."""

    def encode(self, model: Model, asked: AnyAsked, outputs: list[Array]) -> tuple[Headers, bytes]:
        """Return the answer."""


class HttpExchange(RequestContext, ABC):
    """A request and the way to answer it. body: once it is there."""

    __slots__ = ("body", "is_answered")

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope)
        self.body = b""
        self.is_answered = False

    @abstractmethod
    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer; called once. headers: all but the body's length and the request's id."""


class ClientDisconnected(Exception):  # noqa: N818 - nobody's error
    """The client went away before its request was complete."""


class Endpoint(Generic[AnyAsked]):
    """A path that answers POST; whatever happens, with JSON."""

    def __init__(
        self,
        codec: Operation[AnyAsked],
        batcher: Batcher,
        recorder: RequestRecorder,
        *,
        max_body_bytes: int,
    ) -> None:
        self._codec = codec
        self._batcher = batcher
        self._recorder = recorder
        self._max_body_bytes = max_body_bytes

    def handle(self, exchange: HttpExchange) -> None:
        """Answer a POST request whose body is there, now or as soon as the model ran."""
        self._recorder.started()
        self._take(exchange)

    def fail(self, exchange: HttpExchange, error: BaseException) -> None:
        """Answer what an error means. Raises what is not for clients: the end of the process."""
        refused = _refusal(exchange, error)
        body = error_body(refused.message)
        self._reply(exchange, refused.status, error_headers(refused), body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request as an ASGI application."""
        exchange = _Awaited(scope)
        self._recorder.started()
        try:
            check_method(exchange.path, exchange.method, "POST")
            # The server has checked that it is a number.
            announced = int(exchange.headers.get(b"content-length", 0))
            exchange.body = await read_body(receive, announced, self._max_body_bytes)
            self._take(exchange)
            await exchange.replied.wait()
        except ClientDisconnected:
            self._recorder.disconnected()
            return
        except BaseException as error:  # noqa: BLE001 - all that is raised here has an answer
            self.fail(exchange, error)
        status, headers, body = exchange.answer
        await respond(send, status, headers, body, (REQUEST_ID, exchange.request_id))

    def _take(self, exchange: HttpExchange) -> None:
        try:
            model = self._batcher.model
            asked = self._decode(model, exchange)
            self._batcher.submit(model, asked, partial(self._ran, exchange, model, asked))
        except BaseException as error:  # noqa: BLE001 - all that is raised here has an answer
            self.fail(exchange, error)

    def _decode(self, model: Model, exchange: HttpExchange) -> AnyAsked:
        if len(exchange.body) > self._max_body_bytes:
            raise _too_large(self._max_body_bytes, "more")
        if encoding := exchange.headers.get(b"content-encoding"):
            exchange.body = decompress(exchange.body, encoding, self._max_body_bytes)
        asked = self._codec.decode(model, exchange)
        exchange.body = b""  # not kept while it waits
        return asked

    def _ran(self, exchange: HttpExchange, model: Model, asked: AnyAsked, outcome: Result) -> None:
        if isinstance(outcome, BaseException):
            self.fail(exchange, outcome)
            return
        try:
            headers, body = self._codec.encode(model, asked, outcome)
        except BaseException as error:  # noqa: BLE001 - all that is raised here has an answer
            self.fail(exchange, error)
            return
        accepted = exchange.headers.get(b"accept-encoding")
        if accepted and should_compress(body, accepted):
            self._reply_compressed(exchange, headers.plus(*GZIP_HEADERS), body)
        else:
            self._reply(exchange, 200, headers, body)

    def _reply_compressed(self, exchange: HttpExchange, headers: Headers, body: bytes) -> None:
        if len(body) <= MAX_INLINE_BYTES:
            self._reply(exchange, 200, headers, compress(body))
            return
        compressing = asyncio.get_running_loop().run_in_executor(None, compress, body)

        def reply(done: asyncio.Future[bytes]) -> None:
            if error := done.exception():
                self.fail(exchange, error)
            else:
                self._reply(exchange, 200, headers, done.result())

        compressing.add_done_callback(reply)

    def _reply(self, exchange: HttpExchange, status: int, headers: Headers, body: bytes) -> None:
        if exchange.is_answered:
            return  # it was told that the server stops
        exchange.is_answered = True
        self._recorder.finished(exchange, status)
        exchange.reply(status, headers, body)


class _Awaited(HttpExchange):
    """An exchange that a coroutine waits for. answer: what to respond, once that is known."""

    __slots__ = ("answer", "replied")

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope)
        self.replied = asyncio.Event()
        self.answer: tuple[int, Headers, bytes]

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """Let the coroutine go on."""
        self.answer = status, headers, body
        self.replied.set()


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


async def respond(send: Send, status: int, headers: Headers, body: bytes, *more: Pair) -> None:
    """Send a whole answer as ASGI has it. more: headers of this answer alone."""
    pairs = [*headers.pairs, (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def error_headers(error: RequestError) -> Headers:
    """Return the headers that an error is answered with."""
    more = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    return JSON_HEADERS.plus(*more) if more else JSON_HEADERS


def error_body(message: str) -> bytes:
    """Return the one form all errors have."""
    # A lone surrogate, which JSON can escape and UTF-8 cannot write, comes back as "?".
    return json.dumps({"error": message}, ensure_ascii=False).encode(errors="replace")


def method_not_allowed(path: str, method: str, allowed: str) -> RequestError:
    """Return the error for a method that a path does not have."""
    return RequestError(405, f"{path}: expected {allowed}, got {method}", {"allow": allowed})


def check_method(path: str, method: str, allowed: str) -> None:
    """Refuse a method that a path does not have. Raises RequestError."""
    if method != allowed:
        raise method_not_allowed(path, method, allowed)


def _refusal(exchange: HttpExchange, error: BaseException) -> RequestError:
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
        endpoint=exchange.path,
        request_id=exchange.request_id.decode(),
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
