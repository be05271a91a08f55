"""The fast path: POST /predict, /predict/label, and /v2/…/infer without FastAPI.

A request whose body is complete is an HttpExchange. Its Endpoint lets an Operation (predict.py,
infer.py) parse it, submits it to the batcher, lets the operation render the outputs, and replies.
All steps are callbacks, without an asyncio task, coroutines, and ASGI messages per request: without
a network, /predict takes 35 µs here and 57 µs through ASGI (64 connections, Python 3.11).

The server's protocol (http_protocol.py) calls handle() if a request arrives as a whole. Requests
that arrive in pieces, and all requests of another ASGI server, are handled by __call__().
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
from serving.http.headers import JSON_HEADERS, REQUEST_ID, Headers, ModelHeaders, Pair
from serving.http.request_log import RequestContext, RequestRecorder
from serving.inference.batcher import Batcher, Result
from serving.inference.model import Model
from serving.inference.request import InferenceRequest

AnyRequest = TypeVar("AnyRequest", bound=InferenceRequest)


class Operation(Protocol[AnyRequest]):
    """What differs between endpoints: the path, headers, and codec of requests and responses."""

    def parse(self, model: Model, exchange: "HttpExchange") -> AnyRequest:
        """Return the inference request. Raises RequestError if the HTTP request is wrong."""

    def render(
        self, model: Model, headers: ModelHeaders, request: AnyRequest, outputs: list[Array]
    ) -> tuple[Headers, bytes]:
        """Return headers and body of the response. headers: those of the model."""


class HttpExchange(RequestContext, ABC):
    """An HTTP request, and the way to reply to it."""

    __slots__ = ("body", "has_replied")

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope)
        # Empty until the request is complete, and again once it is parsed.
        self.body = b""
        self.has_replied = False

    @abstractmethod
    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """Send the response. Called once.

        headers: all except content-length and x-request-id.
        """


class ClientDisconnected(Exception):  # noqa: N818 - not an error of client or server
    """The client disconnected before its request was complete."""


class Endpoint(Generic[AnyRequest]):
    """A path for POST requests. Every error becomes a JSON response."""

    def __init__(
        self,
        operation: Operation[AnyRequest],
        batcher: Batcher,
        recorder: RequestRecorder,
        *,
        max_body_bytes: int,
    ) -> None:
        self._operation = operation
        self._batcher = batcher
        self._recorder = recorder
        self._max_body_bytes = max_body_bytes
        # The headers of the model that made the last prediction, and the sha256 of its contract.
        # A reference to the model itself would keep it in memory after a reload.
        self._model_headers: ModelHeaders | None = None
        self._contract_sha256 = ""

    def handle(self, exchange: HttpExchange) -> None:
        """Handle a POST request whose body is complete. Replies now or when the model has run."""
        self._recorder.started()
        self._start(exchange)

    def fail(self, exchange: HttpExchange, error: BaseException) -> None:
        """Send the error response. Re-raises KeyboardInterrupt and SystemExit."""
        request_error = _request_error(exchange, error)
        body = error_body(request_error.message)
        self._finish(exchange, request_error.status, error_headers(request_error), body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request as an ASGI application."""
        exchange = _AsgiExchange(scope)
        self._recorder.started()
        try:
            check_method(exchange.path, exchange.method, "POST")
            # The HTTP parser rejects a Content-Length that is not a number.
            announced = int(exchange.headers.get(b"content-length", 0))
            exchange.body = await read_body(receive, announced, self._max_body_bytes)
            self._start(exchange)
            await exchange.replied.wait()
        except ClientDisconnected:
            self._recorder.disconnected()
            return
        except BaseException as error:  # noqa: BLE001 - fail() re-raises what is not for clients
            self.fail(exchange, error)
        status, headers, body = exchange.response
        await respond(send, status, headers, body, (REQUEST_ID, exchange.request_id))

    def _start(self, exchange: HttpExchange) -> None:
        """Parse the request, and submit it to the batcher."""
        try:
            model = self._batcher.model
            self._unpack(exchange)
            request = self._operation.parse(model, exchange)
            exchange.body = b""  # free the memory while the request waits
            self._batcher.submit(model, request, partial(self._on_result, exchange, model, request))
        except BaseException as error:  # noqa: BLE001 - fail() re-raises what is not for clients
            self.fail(exchange, error)

    def _unpack(self, exchange: HttpExchange) -> None:
        """Check the size of the body, and decompress it."""
        if len(exchange.body) > self._max_body_bytes:
            raise _too_large(self._max_body_bytes, "more")
        if encoding := exchange.headers.get(b"content-encoding"):
            exchange.body = decompress(exchange.body, encoding, self._max_body_bytes)

    def _on_result(
        self, exchange: HttpExchange, model: Model, request: AnyRequest, result: Result
    ) -> None:
        """Reply with the outputs of the model or its error."""
        if isinstance(result, BaseException):
            self.fail(exchange, result)
            return
        try:
            model_headers = self._headers_of(model)
            headers, body = self._operation.render(model, model_headers, request, result)
        except BaseException as error:  # noqa: BLE001 - fail() re-raises what is not for clients
            self.fail(exchange, error)
            return
        accepted = exchange.headers.get(b"accept-encoding")
        if accepted and should_compress(body, accepted):
            self._finish_compressed(exchange, headers.plus(*GZIP_HEADERS), body)
        else:
            self._finish(exchange, 200, headers, body)

    def _headers_of(self, model: Model) -> ModelHeaders:
        # Built again only after a reload: it takes 8 µs, about as long as a run of a small model.
        if self._model_headers is None or self._contract_sha256 != model.contract_sha256:
            self._model_headers = ModelHeaders(model.contract)
            self._contract_sha256 = model.contract_sha256
        return self._model_headers

    def _finish_compressed(self, exchange: HttpExchange, headers: Headers, body: bytes) -> None:
        """Compress the body, on a thread if it is large, and reply."""
        if len(body) <= MAX_INLINE_BYTES:
            self._finish(exchange, 200, headers, compress(body))
            return
        future = asyncio.get_running_loop().run_in_executor(None, compress, body)

        def on_done(done: asyncio.Future[bytes]) -> None:
            if error := done.exception():
                self.fail(exchange, error)
            else:
                self._finish(exchange, 200, headers, done.result())

        future.add_done_callback(on_done)

    def _finish(self, exchange: HttpExchange, status: int, headers: Headers, body: bytes) -> None:
        """Record the request, and reply."""
        if exchange.has_replied:
            return  # the server is stopping, and has replied with 503 while the model ran
        exchange.has_replied = True
        self._recorder.finished(exchange, status)
        exchange.reply(status, headers, body)


class _AsgiExchange(HttpExchange):
    """An exchange whose response is sent by a coroutine that waits for it."""

    __slots__ = ("replied", "response")

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope)
        self.replied = asyncio.Event()
        # Status, headers, and body. Set before the event.
        self.response: tuple[int, Headers, bytes]

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """Wake up the coroutine."""
        self.response = status, headers, body
        self.replied.set()


async def read_body(receive: Receive, announced: int, max_bytes: int) -> bytes:
    """Return the complete body of a request. announced: its Content-Length, 0 if it has none.

    Raises RequestError 413 if more than max_bytes bytes are announced or received, and
    ClientDisconnected.
    """
    message = await receive()
    body: bytes = _body_of(message)
    if message.get("more_body", False):
        if announced > max_bytes:
            raise _too_large(max_bytes, str(announced))
        pieces, size = [body], len(body)
        while message.get("more_body", False) and size <= max_bytes:
            message = await receive()
            pieces.append(_body_of(message))
            size += len(pieces[-1])
        body = b"".join(pieces)
    if len(body) > max_bytes:
        raise _too_large(max_bytes, "more")
    return body


async def respond(send: Send, status: int, headers: Headers, body: bytes, *more: Pair) -> None:
    """Send a complete response as ASGI messages. more: further headers."""
    pairs = [*headers.pairs, (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def error_headers(error: RequestError) -> Headers:
    """Return the headers of an error response."""
    more = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    return JSON_HEADERS.plus(*more) if more else JSON_HEADERS


def error_body(message: str) -> bytes:
    """Return the body of an error response: `{"error": message}`, the form of all errors."""
    # JSON can escape a lone surrogate, and a message may quote it. UTF-8 cannot encode it, so "?"
    # replaces it.
    return json.dumps({"error": message}, ensure_ascii=False).encode(errors="replace")


def method_not_allowed(path: str, method: str, allowed: str) -> RequestError:
    """Return the error 405 for a method that the path does not support."""
    return RequestError(405, f"{path}: expected {allowed}, got {method}", {"allow": allowed})


def check_method(path: str, method: str, allowed: str) -> None:
    """Raise RequestError 405 if the method is not the allowed one."""
    if method != allowed:
        raise method_not_allowed(path, method, allowed)


def _request_error(exchange: HttpExchange, error: BaseException) -> RequestError:
    """Convert any error to the one that the client gets; log it if the server is at fault.

    Re-raises KeyboardInterrupt and SystemExit.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return RequestError(503, "the server stopped before the request was complete")
    if not isinstance(error, Exception):
        raise error
    # The frames, but not the message: a message of onnxruntime may contain input values, which
    # must not be logged.
    frames = [" ".join(frame.split()) for frame in traceback.format_tb(error.__traceback__)]
    logs.error(
        "request_failed",
        endpoint=exchange.path,
        request_id=exchange.request_id.decode(),
        error=type(error).__name__,
        frames=frames,
    )
    return RequestError(500, "internal error")


def _body_of(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    body: bytes = message.get("body", b"")
    return body


def _too_large(max_bytes: int, actual: str) -> RequestError:
    return RequestError(413, f"body: expected at most {max_bytes} bytes, got {actual}")
