"""A proxy in front of a fake store that injects network faults into chosen responses.

The client uses the proxy's address instead of the store's. All traffic is real, so a client
reacts to a fault as it would to a network that fails in this way. Plain HTTP, path style only.
"""

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase, BytesIO
from socketserver import TCPServer
from typing import Self
from urllib.parse import urlsplit

_CHUNK_BYTES = 64 * 1024
_WAIT_SECONDS = 30
_POLL_SECONDS = 0.02
_HOP_BY_HOP = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding"})
_FLIPPED = bytes(255 - value for value in range(256))


class _ConnectionCut(Exception):  # noqa: N818 - an event, not an error
    """Close the connection now, whatever Content-Length announced."""


@dataclass
class Exchange:
    """A request, and the number of body bytes sent in its response so far."""

    method: str
    path: str
    range: str | None
    if_match: str | None
    status: int = 0
    bytes_sent: int = 0


@dataclass(frozen=True)
class Fault:
    """The behaviour for one request. The base class changes nothing."""

    def request_headers(self, headers: dict[str, str]) -> dict[str, str]:
        """Return the request headers for the store."""
        return headers

    def answer(self) -> tuple[int, dict[str, str]] | None:
        """Return status and headers of a response that replaces the store's, or None."""
        return None

    def body(self, content: BufferedIOBase, _: "FaultProxy") -> Iterator[bytes]:
        """Yield the body for the client. Raises _ConnectionCut to end it early."""
        return _all(content)


@dataclass(frozen=True)
class Cut(Fault):
    """Close the connection after a number of bytes of the body.

    hook: called just before; it can replace the object, so that a client that resumes finds
    another object of the same name.
    """

    after_bytes: int
    hook: Callable[[], None] | None = None

    def body(self, content: BufferedIOBase, _: "FaultProxy") -> Iterator[bytes]:
        yield from _first(content, self.after_bytes)
        if self.hook is not None:
            self.hook()
        raise _ConnectionCut


@dataclass(frozen=True)
class Drop(Fault):
    """Close the connection before the status line."""

    def answer(self) -> tuple[int, dict[str, str]] | None:
        raise _ConnectionCut


@dataclass(frozen=True)
class Stall(Fault):
    """Send nothing after a number of bytes until `released` is set or the proxy stops."""

    after_bytes: int
    released: threading.Event = field(default_factory=threading.Event)

    def body(self, content: BufferedIOBase, proxy: "FaultProxy") -> Iterator[bytes]:
        yield from _first(content, self.after_bytes)
        proxy.wait_for(self.released)
        yield from _all(content)


@dataclass(frozen=True)
class Status(Fault):
    """Return an error such as 500, 503, or 429 instead of the store's response."""

    status: int
    retry_after: str | None = None

    def answer(self) -> tuple[int, dict[str, str]] | None:
        return self.status, {} if self.retry_after is None else {"Retry-After": self.retry_after}


@dataclass(frozen=True)
class Redirect(Fault):
    """Return 302 and another URL instead of the store's response."""

    location: str

    def answer(self) -> tuple[int, dict[str, str]] | None:
        return 302, {"Location": self.location}


@dataclass(frozen=True)
class WrongBytes(Fault):
    """Send a body of the right length with wrong bytes."""

    def body(self, content: BufferedIOBase, _: "FaultProxy") -> Iterator[bytes]:
        return (chunk.translate(_FLIPPED) for chunk in _all(content))


@dataclass(frozen=True)
class Drip(Fault):
    """Send a few bytes at a time: too slow, but never silent for a read timeout."""

    chunk_bytes: int
    every_seconds: float

    def body(self, content: BufferedIOBase, proxy: "FaultProxy") -> Iterator[bytes]:
        for chunk in _all(content):
            for start in range(0, len(chunk), self.chunk_bytes):
                yield chunk[start : start + self.chunk_bytes]
                proxy.pause(self.every_seconds)


@dataclass(frozen=True)
class WithoutRange(Fault):
    """Behave like a server without Range: return 200 and the whole body."""

    def request_headers(self, headers: dict[str, str]) -> dict[str, str]:
        return {name: value for name, value in headers.items() if name.lower() != "range"}


class FaultProxy:
    """A proxy in front of `upstream`, stopped at the end of the `with` block.

    upstream: the address of the store, http://host:port. otherwise: the behaviour for requests
    without an injected fault. host: the address to listen on.
    """

    def __init__(
        self, upstream: str, otherwise: Fault | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.host = host
        self.upstream = urlsplit(upstream).netloc
        # Every request so far, in order.
        self.exchanges: list[Exchange] = []
        self._otherwise = otherwise or Fault()
        self._faults: list[tuple[str, Fault]] = []
        self._changed = threading.Condition()
        self._ending = threading.Event()
        # Never listens: it reserves the port while the proxy refuses connections.
        self._placeholder = socket.socket()
        self._placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._placeholder.bind((host, 0))
        self.port: int = self._placeholder.getsockname()[1]
        self.url = f"http://{host}:{self.port}"
        self._listener = _Listener(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._placeholder.close()

    def inject(self, *faults: Fault, path: str = "") -> None:
        """Inject faults into the next requests whose path contains `path`, one per request."""
        with self._changed:
            self._faults.extend((path, fault) for fault in faults)

    def sent(self, path: str) -> int:
        """Return the number of body bytes sent for paths that contain `path`."""
        with self._changed:
            return sum(each.bytes_sent for each in self.exchanges if path in each.path)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on this proxy holds; it is evaluated after every chunk."""
        with self._changed:
            assert self._changed.wait_for(condition, _WAIT_SECONDS), "not within 30 s"

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Close open connections and refuse new ones until the end of the `with` block."""
        self.stop()
        yield
        self._ending.clear()
        self._listener = _Listener(self)

    def stop(self) -> None:
        """Close every connection and wait for the threads to end."""
        self._ending.set()
        self._listener.stop()

    # Called by faults and by the request handler:

    def next_fault(self, exchange: Exchange) -> Fault:
        """Record a request and return its fault."""
        with self._changed:
            self.exchanges.append(exchange)
            self._changed.notify_all()
            for number, (path, fault) in enumerate(self._faults):
                if path in exchange.path:
                    del self._faults[number]
                    return fault
        return self._otherwise

    def count(self, exchange: Exchange, *, status: int = 0, size: int = 0) -> None:
        """Record sent bytes."""
        with self._changed:
            exchange.status = status or exchange.status
            exchange.bytes_sent += size
            self._changed.notify_all()

    def wait_for(self, event: threading.Event) -> None:
        """Wait until an event is set or the proxy stops."""
        while not (self._ending.is_set() or event.wait(_POLL_SECONDS)):
            pass

    def pause(self, seconds: float) -> None:
        """Wait for a time or until the proxy stops."""
        self._ending.wait(seconds)


class _Listener(ThreadingHTTPServer):
    """The listening socket of a proxy and its connections."""

    allow_reuse_port = True
    daemon_threads = False  # stop() waits for them

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self._connections: set[socket.socket] = set()
        super().__init__((proxy.host, proxy.port), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(_POLL_SECONDS,))
        self._thread.start()

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's version does a slow DNS lookup

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # the client has closed it already
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def process_request(self, request: "_Request", client_address: "_Address") -> None:
        assert isinstance(request, socket.socket)
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: "_Request") -> None:
        assert isinstance(request, socket.socket)
        self._connections.discard(request)
        super().shutdown_request(request)


_Request = socket.socket | tuple[bytes, socket.socket]
_Address = tuple[str, int]


class _Handler(BaseHTTPRequestHandler):
    """One connection from a client."""

    protocol_version = "HTTP/1.1"
    server: _Listener

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client disconnected
            super().handle_one_request()
            return
        self.close_connection = True

    def _forward(self) -> None:
        exchange = Exchange(
            self.command, self.path, self.headers.get("Range"), self.headers.get("If-Match")
        )
        fault = self.server.proxy.next_fault(exchange)
        # Read the whole body, or its rest would be parsed as the next request.
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        try:
            answer = fault.answer()
            if answer is None:
                self._request(fault, exchange, body)
            else:
                self._start(exchange, *answer, length="0")
        except (_ConnectionCut, http.client.HTTPException, OSError):
            # A failure of the store, too, looks like a lost connection to the client.
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward  # noqa: N815 - http.server's names

    def _request(self, fault: Fault, exchange: Exchange, body: bytes) -> None:
        upstream = http.client.HTTPConnection(self.server.proxy.upstream, timeout=_WAIT_SECONDS)
        with contextlib.closing(upstream):
            headers = fault.request_headers(dict(self.headers.items()))
            upstream.request(self.command, self.path, body or None, headers)
            response = upstream.getresponse()
            self._send_response(fault, exchange, response)

    def _send_response(
        self, fault: Fault, exchange: Exchange, response: http.client.HTTPResponse
    ) -> None:
        content: BufferedIOBase = response
        length = response.headers.get("Content-Length")
        if length is None:
            # Without a length, a client cannot distinguish a cut from the end.
            whole = response.read()
            content, length = BytesIO(whole), str(len(whole))
        headers = {
            name: value
            for name, value in response.headers.items()
            if name.lower() not in _HOP_BY_HOP
        }
        self._start(exchange, response.status, headers, length)
        if self.command != "HEAD":
            for chunk in fault.body(content, self.server.proxy):
                self.wfile.write(chunk)
                self.server.proxy.count(exchange, size=len(chunk))
            # The store itself may have ended too early.
            self.close_connection |= exchange.bytes_sent < int(length)

    def _start(self, exchange: Exchange, status: int, headers: dict[str, str], length: str) -> None:
        self.server.proxy.count(exchange, status=status)
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", length)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing: `exchanges` is the log."""


def _all(content: BufferedIOBase) -> Iterator[bytes]:
    return iter(lambda: content.read(_CHUNK_BYTES), b"")


def _first(content: BufferedIOBase, size: int) -> Iterator[bytes]:
    while size > 0 and (chunk := content.read(min(size, _CHUNK_BYTES))):
        yield chunk
        size -= len(chunk)
