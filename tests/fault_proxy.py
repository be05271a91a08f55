"""A proxy in front of a store that breaks chosen answers on the wire.

Used by tests of pulling: the product's endpoint is the proxy's address instead of the
stand-in's. Every byte between is real, so what a client makes of a fault is what it would
make of a network that fails in that way. Plain HTTP and path style only.
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


class _ConnectionCut(Exception):  # noqa: N818 - what happened
    """The answer ends here, however much of it was promised."""


@dataclass
class Exchange:
    """A request and how much of its answer's body has been sent so far."""

    method: str
    path: str
    range: str | None
    if_match: str | None
    status: int = 0
    bytes_sent: int = 0


@dataclass(frozen=True)
class Fault:
    """What happens to one request; by itself: nothing."""

    def request_headers(self, headers: dict[str, str]) -> dict[str, str]:
        """Return the headers that the store is to see."""
        return headers

    def answer(self) -> tuple[int, dict[str, str]] | None:
        """Return a status and headers to answer with instead of asking the store."""
        return None

    def body(self, content: BufferedIOBase, _: "FaultProxy") -> Iterator[bytes]:
        """Return what the client is to receive; _ConnectionCut where that is not all."""
        return _all(content)


@dataclass(frozen=True)
class Cut(Fault):
    """The connection closes after so many bytes of the body.

    hook: called just before, as the place to swap the object: who then resumes finds
    another one under the same name.
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
    """The connection closes before a status line."""

    def answer(self) -> tuple[int, dict[str, str]] | None:
        raise _ConnectionCut


@dataclass(frozen=True)
class Stall(Fault):
    """Nothing more comes after so many bytes, until `released` is set or the proxy ends."""

    after_bytes: int
    released: threading.Event = field(default_factory=threading.Event)

    def body(self, content: BufferedIOBase, proxy: "FaultProxy") -> Iterator[bytes]:
        yield from _first(content, self.after_bytes)
        proxy.wait_for(self.released)
        yield from _all(content)


@dataclass(frozen=True)
class Status(Fault):
    """An error such as 500, 503 or 429 instead of the store's answer."""

    status: int
    retry_after: str | None = None

    def answer(self) -> tuple[int, dict[str, str]] | None:
        return self.status, {} if self.retry_after is None else {"Retry-After": self.retry_after}


@dataclass(frozen=True)
class Redirect(Fault):
    """302 and another URL instead of the store's answer."""

    location: str

    def answer(self) -> tuple[int, dict[str, str]] | None:
        return 302, {"Location": self.location}


@dataclass(frozen=True)
class WrongBytes(Fault):
    """As many bytes as promised, all of them wrong."""

    def body(self, content: BufferedIOBase, _: "FaultProxy") -> Iterator[bytes]:
        return (chunk.translate(_FLIPPED) for chunk in _all(content))


@dataclass(frozen=True)
class Drip(Fault):
    """A few bytes at a time: too slow, yet never silent for long."""

    chunk_bytes: int
    every_seconds: float

    def body(self, content: BufferedIOBase, proxy: "FaultProxy") -> Iterator[bytes]:
        for chunk in _all(content):
            for start in range(0, len(chunk), self.chunk_bytes):
                yield chunk[start : start + self.chunk_bytes]
                proxy.pause(self.every_seconds)


@dataclass(frozen=True)
class WithoutRange(Fault):
    """A server that does not know Range: it answers 200 with everything."""

    def request_headers(self, headers: dict[str, str]) -> dict[str, str]:
        return {name: value for name, value in headers.items() if name.lower() != "range"}


class FaultProxy:
    """A proxy in front of `upstream`, open in a `with`.

    upstream: the store's address, http://host:port. `otherwise` is what happens to requests
    for which no fault was injected, `host` the address it listens on. `exchanges` holds every
    request so far, in order.
    """

    def __init__(
        self, upstream: str, otherwise: Fault | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.host = host
        self.upstream = urlsplit(upstream).netloc
        self.exchanges: list[Exchange] = []
        self._otherwise = otherwise or Fault()
        self._faults: list[tuple[str, Fault]] = []
        self._changed = threading.Condition()
        self._ending = threading.Event()
        # Never listens: it only keeps the port while the proxy refuses connections.
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
        """Break the next requests whose path contains `path`, one request a fault."""
        with self._changed:
            self._faults.extend((path, fault) for fault in faults)

    def sent(self, path: str) -> int:
        """Return how many bytes of bodies were sent for paths that contain this one."""
        with self._changed:
            return sum(one.bytes_sent for one in self.exchanges if path in one.path)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return once a condition on this proxy holds; it is looked at after every chunk."""
        with self._changed:
            assert self._changed.wait_for(condition, _WAIT_SECONDS), "not within 30 s"

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse connections, and close those that are open, until the end of the `with`."""
        self.stop()
        yield
        self._ending.clear()
        self._listener = _Listener(self)

    def stop(self) -> None:
        """Close every connection and wait for the threads to end."""
        self._ending.set()
        self._listener.stop()

    # For faults and the handler of requests:

    def take(self, exchange: Exchange) -> Fault:
        """Record a request and return what is to happen to it."""
        with self._changed:
            self.exchanges.append(exchange)
            self._changed.notify_all()
            for number, (path, fault) in enumerate(self._faults):
                if path in exchange.path:
                    del self._faults[number]
                    return fault
        return self._otherwise

    def count(self, exchange: Exchange, *, status: int = 0, size: int = 0) -> None:
        """Note what was sent."""
        with self._changed:
            exchange.status = status or exchange.status
            exchange.bytes_sent += size
            self._changed.notify_all()

    def wait_for(self, event: threading.Event) -> None:
        """Return when an event is set or connections are to close."""
        while not (self._ending.is_set() or event.wait(_POLL_SECONDS)):
            pass

    def pause(self, seconds: float) -> None:
        """Return after so long or when connections are to close."""
        self._ending.wait(seconds)


class _Listener(ThreadingHTTPServer):
    """The listening socket of a proxy and the connections that came of it."""

    allow_reuse_port = True
    daemon_threads = False  # stop() waits for them

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self._connections: set[socket.socket] = set()
        super().__init__((proxy.host, proxy.port), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(_POLL_SECONDS,))
        self._thread.start()

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's looks its own name up, which may take long

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # its client was faster
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
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    server: _Listener

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client had enough
            super().handle_one_request()
            return
        self.close_connection = True

    def _forward(self) -> None:
        exchange = Exchange(
            self.command, self.path, self.headers.get("Range"), self.headers.get("If-Match")
        )
        fault = self.server.proxy.take(exchange)
        # Read to its end in any case, or it would be taken for the next request.
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        try:
            answer = fault.answer()
            if answer is None:
                self._ask(fault, exchange, body)
            else:
                self._start(exchange, *answer, length="0")
        except (_ConnectionCut, http.client.HTTPException, OSError):
            # The store's own failure, too, is seen by the client as a lost connection.
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward  # noqa: N815 - http.server's names

    def _ask(self, fault: Fault, exchange: Exchange, body: bytes) -> None:
        upstream = http.client.HTTPConnection(self.server.proxy.upstream, timeout=_WAIT_SECONDS)
        with contextlib.closing(upstream):
            headers = fault.request_headers(dict(self.headers.items()))
            upstream.request(self.command, self.path, body or None, headers)
            response = upstream.getresponse()
            self._pass_on(fault, exchange, response)

    def _pass_on(
        self, fault: Fault, exchange: Exchange, response: http.client.HTTPResponse
    ) -> None:
        content: BufferedIOBase = response
        length = response.headers.get("Content-Length")
        if length is None:
            # Without a length a client could not tell a cut from the end.
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
            # The store, too, may have ended too early.
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
        """Be silent: `exchanges` is the log."""


def _all(content: BufferedIOBase) -> Iterator[bytes]:
    return iter(lambda: content.read(_CHUNK_BYTES), b"")


def _first(content: BufferedIOBase, size: int) -> Iterator[bytes]:
    while size > 0 and (chunk := content.read(min(size, _CHUNK_BYTES))):
        yield chunk
        size -= len(chunk)
