"""uvicorn's HTTP/1.1 protocol with a fast path, a limit for heads, and JSON errors.

Fast path: if a prediction request is complete in the received data, its endpoint is called
directly and the response is written directly. This saves a task, two ASGI messages, and a loop
over the response headers: a third of the cost of a request (`make bench SCENARIOS=micro`). All
other requests are handled by uvicorn through ASGI, also a prediction whose body arrives later.

Private interface of uvicorn, checked with 0.54.0, because uvicorn offers no way to answer a
request without a task:

- STATUS_LINE: the status line of each status, as bytes.
- HttpToolsProtocol: data_received, on_message_complete, send_400_response, shutdown,
  _start_asgi_task, and _should_upgrade are overridden; _unset_keepalive_if_required is called;
  app, cycle, flow.write_paused, headers, loop, parser, scope, tasks, transport, and url are used.
- RequestResponseCycle: scope, body, more_body, default_headers, keep_alive, disconnected,
  on_response, response_started, response_complete, and waiting_for_100_continue are used. The
  protocol sends the response in its place, so the cycle has to be left as after a response.
"""

import asyncio
from typing import Any, cast

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from serving.http.endpoint import Endpoint, HttpExchange, error_body
from serving.http.headers import CLOSE, JSON, REQUEST_ID, Headers, Pair

_MAX_HEAD_BYTES = 1 << 16
_CLOSE_HEADERS = Headers(CLOSE)
_LAST_HEADERS = b"content-length: %d\r\n" + REQUEST_ID + b": %b\r\n\r\n"


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    # Bytes received since the last packet in which a request ended.
    _request_bytes = 0
    # A fast-path request whose head was parsed; the body may follow in the same packet.
    _pending: "DirectExchange | None" = None
    # uvicorn creates a new list each second; the encoded lines are reused in between.
    _default_headers: list[Pair] = []  # noqa: RUF012 - replaced, never changed
    _default_lines = b""

    def data_received(self, data: bytes) -> None:
        """Parse data. Start a request whose body is incomplete; reject a head that is too large."""
        self._unset_keepalive_if_required()
        self._request_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if self._pending:
            pending, self._pending = self._pending, None
            super()._start_asgi_task(pending.cycle, self.app)
        too_large = self._request_bytes > _MAX_HEAD_BYTES and self._is_reading_a_head()
        if too_large and not self.transport.is_closing():
            self._reject(431, f"head: expected at most {_MAX_HEAD_BYTES} bytes, got more")

    def on_message_complete(self) -> None:
        """Handle a request on the fast path now that its body is complete."""
        super().on_message_complete()
        # The rest of this packet is not counted: it may contain complete requests, too.
        self._request_bytes = 0
        if self._pending:
            pending, self._pending = self._pending, None
            self._dispatch(pending)

    def send_400_response(self, msg: str) -> None:
        """Reject bytes that are not HTTP, with the JSON body that all errors have."""
        self._reject(400, msg)

    def shutdown(self) -> None:
        """Close the connection, after the response if a request has begun."""
        # uvicorn does not know of a request whose head is incomplete, and would close at once.
        if not self._is_reading_a_head():
            super().shutdown()

    def send_response(
        self, exchange: "DirectExchange", status: int, headers: Headers, body: bytes
    ) -> None:
        """Write a complete response, and let the next request of the connection start."""
        cycle = exchange.cycle
        self.tasks.discard(exchange)
        # Replace the bound method: it refers to the protocol, the protocol to the cycle, and this
        # circle would be freed only by the garbage collector.
        on_response, cycle.on_response = cycle.on_response, _do_nothing
        if cycle.disconnected or self.transport.is_closing():
            return
        if self._default_headers is not cycle.default_headers:
            self._default_headers = cycle.default_headers
            self._default_lines = Headers(*cycle.default_headers).lines
        lines = self._default_lines
        is_draining = CLOSE in cycle.default_headers
        if not cycle.keep_alive and not is_draining:
            lines += _CLOSE_HEADERS.lines
        cycle.response_started = cycle.response_complete = True
        last = _LAST_HEADERS % (len(body), exchange.request_id)
        self.transport.write(b"".join((STATUS_LINE[status], lines, headers.lines, last, body)))
        if is_draining or not cycle.keep_alive:
            self.transport.close()
        on_response()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Take the fast path if the request may; uvicorn calls this for every request."""
        # A response that was written directly has started the keep-alive timer. It must not end
        # the connection during this request.
        self._unset_keepalive_if_required()
        endpoint = self.app.fast_path(cycle.scope) if cycle.scope["method"] == "POST" else None
        if endpoint is None or cycle.waiting_for_100_continue or self.flow.write_paused:
            super()._start_asgi_task(cycle, app)
            return
        # Copy the headers now: trailers of a chunked body would be appended to the same list.
        exchange = DirectExchange(self, cycle, endpoint)
        if cycle.more_body:
            self._pending = exchange
        else:
            # A pipelined request, started from within the response to the one before. Handled in
            # the next turn of the event loop: many of them would exhaust the stack otherwise.
            self.loop.call_soon(self._dispatch, exchange)

    def _dispatch(self, exchange: "DirectExchange") -> None:
        # A drain waits until `tasks` is empty, and finally cancels the rest.
        self.tasks.add(exchange)  # type: ignore[arg-type] # not a task, but it has cancel()
        exchange.forward()

    def _is_reading_a_head(self) -> bool:
        # uvicorn creates the scope in on_message_begin and adds the method in on_headers_complete.
        return self.scope is not None and "method" not in self.scope

    def _should_upgrade(self) -> bool:
        # uvicorn calls this only for a request with Upgrade or CONNECT, and ignores the request
        # if the result is true. _parse handles it.
        return True

    def _parse(self, data: bytes | memoryview) -> None:
        """Parse data, and ignore Upgrade: Java's HttpClient and `curl --http2` send `h2c`.

        A server may ignore Upgrade, and then responds as usual (RFC 9110, 7.8). httptools always
        stops after the head and treats the body as another protocol. So the head is parsed again
        without Upgrade, and the body after it.

        Private interface of httptools, checked with 0.9.0: the argument of HttpParserUpgrade is
        the offset of the first byte after the head.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as stop:
                (head_end,) = stop.args
            else:
                return
            if self.scope["method"] == "CONNECT":
                self._reject(400, "method: expected GET or POST, got CONNECT")
                return
            self._parse_head_without_upgrade()
            # A view: with a copy, many small requests in one packet would cost quadratic time.
            data = memoryview(data)[head_end:]

    def _parse_head_without_upgrade(self) -> None:
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.scope["method"].encode(), self.url, version)]
        lines += [b"%b: %b" % pair for pair in self.headers if pair[0] != b"upgrade"]
        # The old parser ignores all further data if the head has `Connection: close`.
        self.parser = httptools.HttpRequestParser(self)
        # As in the __init__ of uvicorn's HttpToolsProtocol.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    def _reject(self, status: int, message: str) -> None:
        body = error_body(message)
        head = Headers(JSON, (b"content-length", b"%d" % len(body)), CLOSE)
        self.transport.write(STATUS_LINE[status] + head.lines + b"\r\n" + body)
        self.transport.close()


class DirectExchange(HttpExchange):
    """A request on the fast path: its response is written to its connection directly."""

    __slots__ = ("_endpoint", "_protocol", "cycle")

    def __init__(
        self, protocol: HttpProtocol, cycle: RequestResponseCycle, endpoint: Endpoint[Any]
    ) -> None:
        super().__init__(cast(Scope, cycle.scope))
        self.cycle = cycle
        self._protocol = protocol
        self._endpoint = endpoint

    def forward(self) -> None:
        """Let the endpoint answer the request, whose body is complete."""
        self.body = bytes(self.cycle.body)
        # An idle connection keeps its last cycle, and would keep the body in memory.
        self.cycle.body = bytearray()
        self._endpoint.handle(self)

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """Write the response."""
        self._protocol.send_response(self, status, headers, body)

    def cancel(self, msg: str | None = None) -> None:  # noqa: ARG002 - the signature of a task
        """Answer with an error in the next turn of the event loop; uvicorn cancels its tasks."""
        error = asyncio.CancelledError()
        self._protocol.loop.call_soon(self._endpoint.fail, self, error)


def _do_nothing() -> None:
    """Do nothing."""
