"""The HTTP protocol: requests in any number of packets, pipelines, upgrades, and disconnects."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY, socket
from typing import Any, BinaryIO

import httpx
import numpy as np
import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from artifact.contract import Array
from model_in_image.source import ModelInImageSettings
from serving.inference.model import Model
from serving.server.app import create_app
from serving.server.http_protocol import DirectExchange, HttpProtocol
from tests.servers import ROWS, connect, wait_until, wait_until_read

BODY = json.dumps({"data": ROWS}).encode()


@dataclass
class Response:
    """A response that was read from a connection, with its headers by name."""

    status: int
    headers: dict[str, str]
    body: Any


def offer(name: str = "Upgrade", protocol: str = "h2c") -> tuple[str, ...]:
    """Headers with which Java's HttpClient and `curl --http2` offer HTTP/2 with each request."""
    return (
        "Connection: Upgrade, HTTP2-Settings",
        f"{name}: {protocol}",
        "HTTP2-Settings: AAMAAABk",
    )


def request(
    *headers: str, body: bytes = BODY, path: str = "/predict", version: str = "1.1"
) -> bytes:
    lines = [f"POST {path} HTTP/{version}", "Host: test", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def read_response(stream: BinaryIO) -> Response:
    status = int(stream.readline().split()[1])
    lines = list(iter(stream.readline, b"\r\n"))
    pairs = [line.decode().rstrip().split(": ", 1) for line in lines]
    headers = {name: value for name, value in pairs}  # noqa: C416 - a repeated name is an error
    assert len(headers) == len(pairs)
    return Response(status, headers, json.loads(stream.read(int(headers["content-length"]))))


def read_responses(connection: socket, count: int) -> list[Response]:
    with connection.makefile("rb") as stream:
        return [read_response(stream) for _ in range(count)]


def split_everywhere(
    connection: socket, data: bytes, count: int, splits: Iterable[int] = ()
) -> list[list[Response]]:
    """Send data repeatedly, in two packets split at each position; return all responses."""
    connection.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    responses = []
    for split in splits or range(1, len(data)):
        connection.sendall(data[:split])
        wait_until_read(connection)
        connection.sendall(data[split:])
        responses.append(read_responses(connection, count))
    return responses


def predictions(responses: list[Response]) -> list[Any]:
    assert [response.status for response in responses] == [200] * len(responses)
    return [response.body["prediction"] for response in responses]


@pytest.mark.parametrize("path", ["/predict", "/v2/models/iris/infer"])
def test_a_request_in_several_packets_gets_the_same_response_as_in_one(
    iris: httpx.Client, path: str
) -> None:
    """On the fast path and through ASGI, also for a request that is rejected."""
    data = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": ROWS[0]}
    body = BODY if path == "/predict" else json.dumps({"inputs": [data]}).encode()
    for content, status in ((body, 200), (body[:-1], 400)):
        whole = request("X-Request-ID: id", body=content, path=path)
        responses = []
        for cuts in ([], [9], [whole.index(b"\r\n\r\n") + 4], [len(whole) - 1], [20, 90, 110]):
            with connect(str(iris.base_url)) as connection:
                for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
                    connection.sendall(whole[start:end])
                    wait_until_read(connection)
                responses += read_responses(connection, 1)
        for response in responses:
            response.headers.pop("date")
            assert response == responses[0]
        assert responses[0].status == status
        assert responses[0].headers["x-request-id"] == "id"


def test_pipelined_requests_are_answered_in_order(iris: httpx.Client) -> None:
    """On the fast path: accepted, rejected, and larger than a buffer. Through ASGI: health."""
    large = b'{"data": [%b]}' % b",".join([b"[5.1, 3.5, 1.4, 0.20000000000000000000]"] * 1000)
    bodies = [BODY, b"{", BODY, large + b" " * 100_000, BODY]
    sent = [request(f"X-Request-ID: {number}", body=body) for number, body in enumerate(bodies)]
    sent.insert(2, b"GET /health HTTP/1.1\r\nHost: test\r\nX-Request-ID: health\r\n\r\n")
    with connect(str(iris.base_url)) as connection:
        sender = threading.Thread(target=connection.sendall, args=(b"".join(sent),))
        sender.start()
        responses = read_responses(connection, len(sent))
        sender.join()

    ids = [response.headers["x-request-id"] for response in responses]
    assert ids == ["0", "1", "health", "2", "3", "4"]
    assert [response.status for response in responses] == [200, 400, 200, 200, 200, 200]
    assert len(responses[4].body["prediction"]) == 1000


def test_many_pipelined_requests_do_not_exhaust_the_stack(iris: httpx.Client) -> None:
    """Each is handled after the response to the request before it, not from within it."""
    bad = request(body=b"{")
    with connect(str(iris.base_url)) as connection:
        connection.sendall(request() + bad * 700)
        responses = read_responses(connection, 701)

    assert [response.status for response in responses] == [200] + [400] * 700


def test_a_large_packet_that_ends_within_a_head_is_accepted(iris: httpx.Client) -> None:
    """The limit of a head does not count the bodies before the head in the same packet."""
    large, small = request(body=BODY + b" " * 100_000), request()
    with connect(str(iris.base_url)) as connection:
        for _ in range(10):  # The kernel may still split the packet elsewhere.
            connection.sendall(large + small[:20])
            wait_until_read(connection)
            connection.sendall(small[20:])
            responses = read_responses(connection, 2)

            assert [response.status for response in responses] == [200, 200]


@pytest.mark.parametrize(
    "last", [request(version="1.0"), request("Connection: close")], ids=["HTTP/1.0", "close"]
)
def test_the_connection_of_a_last_request_is_closed(iris: httpx.Client, last: bytes) -> None:
    with connect(str(iris.base_url)) as connection:
        connection.sendall(last)
        (response,) = read_responses(connection, 1)

        assert response.headers["connection"] == "close"
        assert connection.recv(1) == b""


def test_a_client_that_waits_for_100_continue_gets_it(iris: httpx.Client) -> None:
    """curl waits for it before it sends a large body."""
    whole = request("Expect: 100-continue")
    with connect(str(iris.base_url)) as connection, connection.makefile("rb") as stream:
        connection.sendall(whole[: -len(BODY)])
        assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert stream.readline() == b"\r\n"
        connection.sendall(BODY)

        assert read_response(stream).status == 200


class HeldServer:
    """A server in this process whose model does not return until `may_end` is set."""

    def __init__(self, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        directory = store / "iris" / "1"
        self.app = create_app(ModelInImageSettings(model_dir=directory), directory)
        self.state = ServerState()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.url = ""
        self.runs, self.may_end = threading.Event(), threading.Event()
        run = Model.run

        def run_when_allowed(model: Model, *arguments: Any) -> list[Array]:
            self.runs.set()
            assert self.may_end.wait(20)
            return run(model, *arguments)

        monkeypatch.setattr(Model, "run", run_when_allowed)
        # Every run goes to the thread, so the event loop is free while the model runs.
        monkeypatch.setattr("serving.inference.batcher._MAX_INLINE_SECONDS", 0)

    def serve(self, act: Callable[[BinaryIO], list[Response]]) -> list[Response]:
        """Send a request, call act() while the model runs, and return the responses of act()."""

        async def serve() -> list[Response]:
            self.loop = loop = asyncio.get_running_loop()
            config = Config(
                self.app, lifespan="off", ws="none", log_config=None, proxy_headers=False
            )
            config.load()
            listening = await loop.create_server(
                lambda: HttpProtocol(config, self.state, {}), "127.0.0.1"
            )
            async with self.app.running(), listening:
                port = listening.sockets[0].getsockname()[1]
                self.url = f"http://127.0.0.1:{port}"
                responses = await asyncio.to_thread(self._act_during_a_run, act)
                self.may_end.set()
                await asyncio.to_thread(wait_until, lambda: not self.state.tasks)
            return responses

        return asyncio.run(serve())

    def _act_during_a_run(self, act: Callable[[BinaryIO], list[Response]]) -> list[Response]:
        with connect(self.url) as connection:
            connection.sendall(request())
            assert self.runs.wait(20)
            with connection.makefile("rb") as stream:
                return act(stream)


def test_a_request_that_outlasts_the_drain_gets_503(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn cancels the tasks that have not ended in time."""
    held = HeldServer(store, monkeypatch)

    def cancel(stream: BinaryIO) -> list[Response]:
        (remaining,) = held.state.tasks
        assert held.loop
        held.loop.call_soon_threadsafe(remaining.cancel, "the drain is over")
        return [read_response(stream)]

    (response,) = held.serve(cancel)

    assert response.status == 503
    assert response.body == {"error": "the server stopped before the request was complete"}


def test_a_disconnected_client_leaves_no_task_behind(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held = HeldServer(store, monkeypatch)

    assert held.serve(lambda _: []) == []

    assert not held.state.tasks
    assert caplog.records == []


def test_invalid_bytes_after_a_request_do_not_fail_other_clients(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests that are batched with others are followed by bytes that are not HTTP."""
    held = HeldServer(store, monkeypatch)

    def nonsense(stream: BinaryIO) -> list[Response]:
        with connect(held.url) as hostile, connect(held.url) as neighbour:
            hostile.sendall(request() * 2 + b"nonsense\r\n\r\n")
            neighbour.sendall(request())
            wait_until_read(neighbour)
            assert hostile.recv(1 << 16).startswith(b"HTTP/1.1 400 ")
            held.may_end.set()
            return [read_response(stream), *read_responses(neighbour, 1)]

    assert [response.status for response in held.serve(nonsense)] == [200, 200]
    assert not held.state.tasks


def test_another_method_is_rejected_before_its_body_arrives(iris: httpx.Client) -> None:
    with connect(str(iris.base_url)) as connection:
        connection.sendall(request().replace(b"POST", b"PUT")[: -len(BODY)])
        (response,) = read_responses(connection, 1)

    assert response.status == 405


def test_trailers_of_a_chunked_body_are_not_headers(iris: httpx.Client) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(str(iris.base_url)) as connection:
        connection.sendall(
            head + b"%x\r\n%b\r\n0\r\nContent-Encoding: br\r\n\r\n" % (len(BODY), BODY)
        )
        (response,) = read_responses(connection, 1)

    assert response.status == 200


@pytest.mark.parametrize(
    "names",
    [("Upgrade", "", ""), ("", "UPGRADE", ""), ("", "", "upgrade"), ("uPGRADE", "Upgrade", "h2c")],
    ids=["first", "middle", "last", "all"],
)
def test_upgrade_is_ignored_in_every_request_of_a_pipeline(
    iris: httpx.Client, names: tuple[str, ...]
) -> None:
    """Wherever the pipeline is split into packets, no body is lost or altered."""
    bodies = [json.dumps({"data": [row]}).encode() for row in ([1, 2, 3, 4], *ROWS)]
    pipeline = b"".join(
        request(*offer(name) if name else (), body=body)
        for name, body in zip(names, bodies, strict=True)
    )
    expected = [iris.post("/predict", content=body).json()["prediction"] for body in bodies]

    with connect(str(iris.base_url)) as connection:
        responses = split_everywhere(connection, pipeline, len(bodies))

    for each in responses:
        np.testing.assert_allclose(predictions(each), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["Upgrade", "UPGRADE", "upgrade"])
@pytest.mark.parametrize("trailer", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"])
def test_upgrade_is_ignored_with_a_chunked_body(
    iris: httpx.Client, name: str, trailer: bytes
) -> None:
    lines = ["POST /predict HTTP/1.1", "Host: test", "Transfer-Encoding: chunked", *offer(name)]
    head = "\r\n".join([*lines, "", ""]).encode()
    data = head + b"5\r\n%b\r\n%x\r\n%b\r\n0\r\n%b\r\n" % (
        BODY[:5], len(BODY) - 5, BODY[5:], trailer,
    )  # fmt: skip

    with connect(str(iris.base_url)) as connection:
        responses = split_everywhere(connection, data, 1)

    expected = iris.post("/predict", content=BODY).json()["prediction"]
    assert [predictions(each) for each in responses] == [[expected]] * len(responses)


@pytest.mark.parametrize(
    "headers", [(), offer(), offer("UPGRADE")], ids=["none", "h2c", "capitals"]
)
def test_a_body_that_contains_an_upgrade_header_is_not_altered(
    pairs: httpx.Client, headers: tuple[str, ...]
) -> None:
    """Binary tensors may contain any bytes, also those of a header and of a blank line."""
    left = b"\r\nUpgrade: a\r\n\r\n"
    data = binary_request(left, *headers)
    body_start = data.index(b"\r\n\r\n") + 4
    splits = range(body_start - 6, len(data))

    with connect(str(pairs.base_url)) as connection:
        responses = split_everywhere(connection, data, 1, splits)

    expected = np.frombuffer(left, "<f4")
    for (response,) in responses:
        assert response.status == 200
        (total,) = response.body["outputs"]
        np.testing.assert_array_equal(np.array(total["data"], "<f4"), expected)


def binary_request(left: bytes, *headers: str) -> bytes:
    """Return a request for the sum of two binary FP32[2,2] tensors; the second is zero."""
    tensor = {"datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}}
    inputs = [{"name": name, **tensor} for name in ("left", "right")]
    head = json.dumps({"inputs": inputs, "outputs": [{"name": "sum"}]}).encode()
    return request(
        f"Inference-Header-Content-Length: {len(head)}",
        *headers,
        body=head + left + bytes(16),
        path="/v2/models/pairs/infer",
    )


@pytest.mark.parametrize("path", ["/health", "/v2/health/ready", "/metadata", "/no/such/path"])
@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
def test_upgrade_is_ignored_on_every_path(iris: httpx.Client, path: str, protocol: str) -> None:
    """Requests without a body, and paths that are served through ASGI."""
    lines = [f"GET {path} HTTP/1.1", "Host: test", *offer("UPGRADE", protocol)]
    data = "\r\n".join([*lines, "", ""]).encode()

    with connect(str(iris.base_url)) as connection:
        connection.sendall(data + data + request())
        first, second, last = read_responses(connection, 3)

    expected = iris.get(path)
    for response in (first, second):
        assert (response.status, response.body) == (expected.status_code, expected.json())
    assert last.status == 200


@pytest.mark.parametrize(
    ("headers", "version"),
    [(("Connection: Upgrade, close", "UPGRADE: h2c"), "1.1"), (offer("UPGRADE"), "1.0")],
    ids=["close", "HTTP/1.0"],
)
def test_upgrade_does_not_keep_a_connection_open(
    iris: httpx.Client, headers: tuple[str, ...], version: str
) -> None:
    whole = request(*headers, version=version)
    for split in (len(whole) - len(BODY) - 1, len(whole) - len(BODY), len(whole) - 1):
        with connect(str(iris.base_url)) as connection:
            connection.sendall(whole[:split])
            wait_until_read(connection)
            connection.sendall(whole[split:])
            (response,) = read_responses(connection, 1)

            assert response.status == 200
            assert response.headers["connection"] == "close"
            assert connection.recv(1) == b""


def test_upgrade_is_ignored_by_a_client_that_waits_for_100_continue(iris: httpx.Client) -> None:
    whole = request(*offer("UPGRADE"), "Expect: 100-continue")
    with connect(str(iris.base_url)) as connection, connection.makefile("rb") as stream:
        connection.sendall(whole[: -len(BODY)])
        assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert stream.readline() == b"\r\n"
        connection.sendall(BODY)

        assert read_response(stream).status == 200


def test_many_offers_in_one_packet_are_ignored(iris: httpx.Client) -> None:
    """Each head is parsed twice, without recursion and without a copy of the packet."""
    with connect(str(iris.base_url)) as connection:
        sender = threading.Thread(
            target=connection.sendall, args=(request(*offer("UPGRADE"), body=b"{") * 2000,)
        )
        sender.start()
        responses = read_responses(connection, 2000)
        sender.join()

    assert [response.body for response in responses] == [responses[0].body] * 2000
    assert responses[0].body["error"].startswith("body: ")


def test_a_whole_request_with_upgrade_takes_the_fast_path(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The offer is not logged as a warning: it is not a mistake."""
    held = HeldServer(store, monkeypatch)

    def send_offer(stream: BinaryIO) -> list[Response]:
        with connect(held.url) as connection:
            connection.sendall(request(*offer("UPGRADE")))
            wait_until(lambda: len(held.state.tasks) == 2)
            kinds: set[type] = {type(task) for task in held.state.tasks}
            assert kinds == {DirectExchange}
            held.may_end.set()
            return [read_response(stream), *read_responses(connection, 1)]

    first, second = held.serve(send_offer)

    assert first.body == second.body
    assert caplog.records == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"CONNECT test:443 HTTP/1.1\r\nHost: test\r\n\r\n",
            "method: expected GET or POST, got CONNECT",
        ),
        (
            b"CONNECT /predict HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n{}",
            "method: expected GET or POST, got CONNECT",
        ),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "Invalid HTTP request received."),
    ],
    ids=["CONNECT", "CONNECT with a path and a body", "HTTP/2"],
)
def test_another_protocol_is_rejected_and_the_connection_closed(
    iris: httpx.Client, data: bytes, message: str
) -> None:
    """A tunnel, or HTTP/2 without an offer (`curl --http2-prior-knowledge`)."""
    end = data.rindex(b"\r\n\r\n") + 4
    for split in (5, end - 3, end - 1):
        with connect(str(iris.base_url)) as connection:
            connection.sendall(data[:split])
            wait_until_read(connection)
            connection.sendall(data[split:])
            (response,) = read_responses(connection, 1)

            assert (response.status, response.body) == (400, {"error": message})
            assert response.headers["connection"] == "close"
            assert connection.recv(1) == b""
