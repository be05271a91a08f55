"""uvicorn's HTTP/1.1 protocol with what it lacks: limits, one form of errors, a whole drain.

And with a short way for the hot path: a request that came whole is handed to its endpoint at
once, and its answer is written at once. Whatever else there is to HTTP stays uvicorn's, and so
does a request that comes in pieces: then an ASGI task waits for the rest of it.

The short way saves a task, two ASGI messages, and a look at each header of the answer: a third
of what a request costs (`make bench SCENARIOS=micro`).
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

from serving.http.endpoint import Endpoint, Exchange, error_body
from serving.http.headers import CLOSE, JSON, REQUEST_ID, Headers, Pair

_MAX_HEAD_BYTES = 1 << 16
_CLOSES = Headers(CLOSE)
_LAST = b"content-length: %d\r\n" + REQUEST_ID + b": %b\r\n\r\n"


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    # Bytes received since the last packet in which a request ended.
    _request_bytes = 0
    # A hot request whose head is there, until it is known whether its body came with it.
    _begun: "DirectExchange | None" = None
    # uvicorn makes new ones each second.
    _default_headers: list[Pair] = []  # noqa: RUF012 - never changed
    _default_lines = b""

    def data_received(self, data: bytes) -> None:
        """Parse data. Start a request whose body is incomplete; reject a head that is too large."""
        self._unset_keepalive_if_required()
        self._request_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if self._begun:
            begun, self._begun = self._begun, None
            super()._start_asgi_task(begun.cycle, self.app)
        too_large = self._request_bytes > _MAX_HEAD_BYTES and self._reading_a_head()
        if too_large and not self.transport.is_closing():
            self._refuse(431, f"head: expected at most {_MAX_HEAD_BYTES} bytes, got more")

    def on_message_complete(self) -> None:
        """Handle a request on the fast path now that its body is complete."""
        super().on_message_complete()
        # The rest of this packet is not counted: it may hold whole requests, too.
        self._request_bytes = 0
        if self._begun:
            begun, self._begun = self._begun, None
            self._take(begun)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the form that all errors have."""
        self._refuse(400, msg)

    def shutdown(self) -> None:
        """Close the connection once the request that has begun, if any, is answered."""
        if not self._reading_a_head():
            super().shutdown()

    def answer(
        self, exchange: "DirectExchange", status: int, headers: Headers, body: bytes
    ) -> None:
        """Write a whole answer, and let the connection's next request begin."""
        cycle = exchange.cycle
        self.tasks.discard(exchange)
        on_response, cycle.on_response = cycle.on_response, _nothing  # no circle of references
        if cycle.disconnected or self.transport.is_closing():
            return
        if self._default_headers is not cycle.default_headers:
            self._default_headers = cycle.default_headers
            self._default_lines = Headers(*cycle.default_headers).lines
        lines = self._default_lines
        says_so = CLOSE in cycle.default_headers
        if not cycle.keep_alive and not says_so:
            lines += _CLOSES.lines
        cycle.response_started = cycle.response_complete = True
        last = _LAST % (len(body), exchange.request_id)
        self.transport.write(b"".join((STATUS_LINE[status], lines, headers.lines, last, body)))
        if says_so or not cycle.keep_alive:
            self.transport.close()
        on_response()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # An answer that was written at once has set the timer for what comes after this request.
        self._unset_keepalive_if_required()
        endpoint = self.app.hot(cycle.scope) if cycle.scope["method"] == "POST" else None
        if endpoint is None or cycle.waiting_for_100_continue or self.flow.write_paused:
            super()._start_asgi_task(cycle, app)
            return
        # Now: what a chunked body has behind it are no headers.
        exchange = DirectExchange(self, cycle, endpoint)
        if cycle.more_body:
            self._begun = exchange
        else:
            # It waited behind another one, whose answer is being written: not in the midst of that.
            self.loop.call_soon(self._take, exchange)

    def _take(self, exchange: "DirectExchange") -> None:
        # A drain waits for them all, and cancels at last those that are left.
        self.tasks.add(exchange)  # type: ignore[arg-type] # no task, but it can be cancelled
        exchange.take()

    def _reading_a_head(self) -> bool:
        # on_message_begin makes the scope, on_headers_complete gives it its method.
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
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as stop:
                (head_end,) = stop.args
            else:
                return
            if self.scope["method"] == "CONNECT":
                self._refuse(400, "method: expected GET or POST, got CONNECT")
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
        # As in uvicorn's __init__.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    def _refuse(self, status: int, message: str) -> None:
        body = error_body(message)
        head = Headers(JSON, (b"content-length", b"%d" % len(body)), CLOSE)
        self.transport.write(STATUS_LINE[status] + head.lines + b"\r\n" + body)
        self.transport.close()


class DirectExchange(Exchange):
    """An exchange that is answered on its connection."""

    __slots__ = ("_endpoint", "_protocol", "cycle")

    def __init__(
        self, protocol: HttpProtocol, cycle: RequestResponseCycle, endpoint: Endpoint[Any]
    ) -> None:
        super().__init__(cast(Scope, cycle.scope))
        self.cycle = cycle
        self._protocol = protocol
        self._endpoint = endpoint

    def take(self) -> None:
        """Have the endpoint answer, the body being there."""
        self.body = bytes(self.cycle.body)
        # A connection that is idle keeps its last cycle.
        self.cycle.body = bytearray()
        self._endpoint.take(self)

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """Write the answer."""
        self._protocol.answer(self, status, headers, body)

    def cancel(self, msg: str | None = None) -> None:  # noqa: ARG002 - as a task has it
        """Answer soon that there will be no answer."""
        stopped = asyncio.CancelledError()
        self._protocol.loop.call_soon(self._endpoint.refuse, self, stopped)


def _nothing() -> None:
    """Do nothing."""
