"""What is noted of requests: their id, their line in the log, and that they are under way."""

import json
import os
import re
import signal

import httpx
import pytest

from serving.http.headers import request_id
from tests.servers import ROWS, Start, connect, wait_until, wait_until_read, workers

MADE = re.compile(r"[0-9a-f]{32}")
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
PATHS = ("/predict", "/v2/models/iris/infer", "/health", "/nope", "/metadata")


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_has_the_id_that_the_client_gave(iris: httpx.Client, path: str) -> None:
    """Right or wrong, hot or not."""
    answer = iris.post(path, content=b"{", headers={"X-Request-ID": "order-66"})

    assert answer.headers.get_list("x-request-id") == ["order-66"]


@pytest.mark.parametrize("path", PATHS)
def test_an_answer_to_a_request_without_an_id_has_a_new_one(iris: httpx.Client, path: str) -> None:
    first, second = (iris.get(path).headers["x-request-id"] for _ in range(2))

    assert MADE.fullmatch(first)
    assert first != second


def test_a_trace_is_an_id(iris: httpx.Client) -> None:
    answer = iris.get("/health", headers={"traceparent": TRACEPARENT})

    assert answer.headers["x-request-id"] == TRACE


@pytest.mark.parametrize(
    ("client_id", "traceparent", "taken"),
    [
        (b"a", TRACEPARENT.encode(), b"a"),
        (b"", TRACEPARENT.encode(), TRACE.encode()),
        (b"two words", TRACEPARENT.encode(), TRACE.encode()),
        (b"x" * 128, b"", b"x" * 128),
        (b"x" * 129, b"", None),
        (b"\xc3\xa9", b"", None),
        (b"a\x1bb", b"", None),
        (b"", b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01", None),
        (b"", b"nonsense", None),
        (b"", b"", None),
    ],
)
def test_an_invalid_request_id_is_ignored(
    client_id: bytes, traceparent: bytes, taken: bytes | None
) -> None:
    """The id is copied into a header and into logs: no line breaks, no escape sequences."""
    actual = request_id(client_id, traceparent)

    assert actual == taken if taken else MADE.fullmatch(actual.decode())


def test_workers_make_different_ids(server: Start) -> None:
    """They are forks of one process."""
    url = server(WORKERS="2").wait_until_ready().url
    seen: set[int] = set()
    made: set[str] = set()
    with httpx.Client(base_url=url, headers={"Connection": "close"}) as client:
        while len(seen) < 2 and len(made) < 400:
            answer = client.get("/inventory")
            seen.add(answer.json()["pid"])
            made.add(answer.headers["x-request-id"])
            count = len(made)

    assert len(seen) == 2
    assert len(made) == count


def test_requests_are_logged_only_with_access_log(server: Start) -> None:
    running = server().wait_until_ready()

    httpx.post(f"{running.url}/predict", json={"data": ROWS})
    httpx.post(f"{running.url}/predict", json={"data": "wrong"})
    running.stop()

    assert running.events("request") == []


def test_access_log_lines_have_id_path_status_and_duration(server: Start) -> None:
    """They contain neither inputs nor predictions."""
    running = server(ACCESS_LOG="true").wait_until_ready()
    headers = {"X-Request-ID": "order-66"}

    httpx.post(f"{running.url}/predict", json={"data": ROWS}, headers=headers)
    httpx.post(f"{running.url}/predict", json={"data": [[5.1, 3.5, 1.4, "0.2"]]})
    httpx.get(f"{running.url}/label?secret=7")
    running.stop()

    right, wrong, other = (
        line for line in running.events("request") if line["path"] != "/v2/health/ready"
    )
    assert (right["level"], right["method"], right["path"]) == ("info", "POST", "/predict")
    assert (right["status"], right["request_id"]) == (200, "order-66")
    assert 0 < right["seconds"] < 1
    assert (wrong["level"], wrong["status"]) == ("info", 400)
    assert (other["path"], other["status"]) == ("/label", 200)
    logged = json.dumps([right, wrong, other])
    assert not {"5.1", "0.2", "secret", "setosa"} & set(re.findall(r"[\w.]+", logged))


def in_flight(url: str) -> float:
    """Of all workers, the one that asks included."""
    text = httpx.get(f"{url}/metrics").text
    (found,) = re.findall(r"^http_requests_in_flight (\S+)$", text, re.MULTILINE)
    return float(found)


@pytest.mark.parametrize("count", ["1", "2"])
def test_requests_under_way_are_counted(server: Start, count: str) -> None:
    url = server(WORKERS=count).wait_until_ready().url
    assert in_flight(url) == 1

    with connect(url) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        wait_until_read(connection)
        wait_until(lambda: in_flight(url) == 2)
        # A client that disconnects early is no longer in flight.
    wait_until(lambda: in_flight(url) == 1)


def test_a_worker_that_is_killed_takes_what_it_had_under_way_with_it(server: Start) -> None:
    """And leaves what it had counted."""
    url = server(WORKERS="2").wait_until_ready().url
    for _ in range(10):
        httpx.post(f"{url}/predict", json={"data": ROWS})
    before = workers(url)
    counted = 'http_requests_total{endpoint="/predict",status="2xx"} 10.0'
    with connect(url) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        wait_until_read(connection)
        wait_until(lambda: in_flight(url) == 2)

        for pid in before:
            os.kill(pid, signal.SIGKILL)

        wait_until(lambda: len(workers(url) - before) == 2)
        assert in_flight(url) == 1
    assert counted in httpx.get(f"{url}/metrics").text
