"""Tests of the fake stores and the fault proxy, which other tests rely on."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, GenericError, NotSupportedError
from obstore.store import from_url

from tests.fakes import (
    FAKES,
    FakeFileStore,
    FakeHttpStore,
    FakeS3Store,
    Location,
    unavailable,
)
from tests.fault_proxy import (
    Cut,
    Drip,
    Drop,
    FaultProxy,
    Stall,
    Status,
    WithoutRange,
    WrongBytes,
)

PATH = "iris/1/model.onnx"
MODEL = bytes(range(256)) * 1024
FOREVER = "public, max-age=31536000, immutable"


@pytest.fixture(scope="module", params=FAKES)
def fake(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeFileStore]:
    """Each kind of store in turn."""
    with FAKES[request.param](tmp_path_factory.mktemp(request.param)) as started:
        yield started


@pytest.fixture(scope="module")
def http_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHttpStore]:
    """A store with one object."""
    with FakeHttpStore(tmp_path_factory.mktemp("http")) as started:
        started.put(PATH, MODEL)
        yield started


@pytest.fixture
def proxy(http_store: FakeHttpStore) -> Iterator[FaultProxy]:
    with FaultProxy(http_store.address) as started:
        yield started


class Reader:
    """obstore, configured by environment variables only, without its own retries."""

    def __init__(self, place: Location, *, read_timeout: str = "10s") -> None:
        with pytest.MonkeyPatch.context() as environment:
            for name in os.environ:
                if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
                    environment.delenv(name)
            for name, value in place.environment.items():
                environment.setenv(name, value)
            if place.uri.startswith("file:"):
                self.store = from_url(place.uri)
                return
            self.store = from_url(
                place.uri,
                client_options={"allow_http": True, "read_timeout": read_timeout},
                retry_config={"max_retries": 0},
            )

    def read(self, offset: int = 0) -> bytes:
        """Yield the object at PATH from an offset, in small chunks."""
        options: obstore.GetOptions = {"range": {"offset": offset}} if offset else {}
        stream = obstore.get(self.store, PATH, options=options).stream(min_chunk_size=1)
        return b"".join(stream)


def test_obstore_reads_an_object_written_by_a_test(fake: FakeFileStore) -> None:
    """The URI and environment variables suffice: no test configures the product in code."""
    fake.put(PATH, MODEL, cache_control=FOREVER)
    reader = Reader(fake.at(fake.address))
    assert fake.get(PATH) == MODEL
    assert reader.read() == MODEL
    assert reader.read(offset=1000) == MODEL[1000:]
    meta = obstore.head(reader.store, PATH)
    fake.put(PATH, MODEL[::-1])
    assert obstore.head(reader.store, PATH)["e_tag"] != meta["e_tag"]
    assert PATH in fake.list()
    fake.delete(PATH)
    assert fake.list() == []
    with pytest.raises(FileNotFoundError):
        reader.read()


def test_a_conditional_put_of_obstore_writes_an_object_once(fake: FakeFileStore) -> None:
    """Publishing relies on it: a version is never overwritten."""
    reader = Reader(Location(fake.publish_uri, fake.environment))
    cacheable = not fake.publish_uri.startswith("file:")
    attributes = {"Cache-Control": FOREVER} if cacheable else None
    obstore.put(reader.store, "iris/2/contract.json", b"{}", mode="create", attributes=attributes)
    with pytest.raises(AlreadyExistsError):
        obstore.put(reader.store, "iris/2/contract.json", b"other", mode="create")
    assert fake.get("iris/2/contract.json") == b"{}"
    if cacheable:
        assert fake.cache_control("iris/2/contract.json") == FOREVER
    fake.delete("iris/2/contract.json")


def test_a_large_object_is_put_in_parts(fake: FakeFileStore) -> None:
    reader = Reader(Location(fake.publish_uri, fake.environment))
    large = MODEL * 24
    obstore.put(reader.store, PATH, large, chunk_size=5 * 1024 * 1024, use_multipart=True)
    assert fake.get(PATH) == large
    fake.delete(PATH)


def test_a_stopped_store_refuses_connections(tmp_path: Path) -> None:
    with FakeHttpStore(tmp_path) as started:
        started.put(PATH, MODEL)
    with pytest.raises(GenericError, match="Connection refused"):
        Reader(started.at(started.address)).read()


def test_s3_works_through_a_proxy(tmp_path: Path) -> None:
    with FakeS3Store(tmp_path) as s3, FaultProxy(s3.address) as proxy:
        s3.put(PATH, MODEL)
        proxy.inject(Status(503))
        reader = Reader(s3.at(proxy.url))
        with pytest.raises(GenericError, match="503"):
            reader.read()
        assert reader.read() == MODEL
        assert [each.status for each in proxy.exchanges] == [503, 200]


def test_a_missing_store_skips_but_fails_on_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no node"):
        unavailable("no node")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="no node"):
        unavailable("no node")


def reader_of(proxy: FaultProxy, *, read_timeout: str = "10s") -> Reader:
    return Reader(Location(f"{proxy.url}/models"), read_timeout=read_timeout)


def test_without_a_fault_requests_pass_and_are_recorded(proxy: FaultProxy) -> None:
    assert reader_of(proxy).read(offset=1000) == MODEL[1000:]
    (exchange,) = proxy.exchanges
    assert (exchange.method, exchange.path) == ("GET", f"/models/{PATH}")
    assert (exchange.status, exchange.range) == (206, "bytes=1000-")
    proxy.wait_until(lambda: proxy.sent(PATH) == len(MODEL) - 1000)


def test_a_cut_closes_the_connection_after_its_bytes(proxy: FaultProxy) -> None:
    proxy.inject(Cut(after_bytes=70_000))
    with pytest.raises(GenericError, match="body"):
        reader_of(proxy).read()
    assert proxy.sent(PATH) == 70_000


def test_a_cut_may_change_the_object(proxy: FaultProxy, http_store: FakeHttpStore) -> None:
    reader = reader_of(proxy)
    before = obstore.head(reader.store, PATH)["e_tag"]
    proxy.inject(Cut(after_bytes=1000, hook=lambda: http_store.put(PATH, MODEL[::-1])))
    with pytest.raises(GenericError):
        reader.read()
    try:
        assert obstore.head(reader.store, PATH)["e_tag"] != before
    finally:
        http_store.put(PATH, MODEL)


def test_a_dropped_connection_has_no_status_line(proxy: FaultProxy) -> None:
    proxy.inject(Drop())
    with pytest.raises(GenericError, match="IncompleteMessage"):
        reader_of(proxy).read()


def test_a_stall_lasts_until_it_is_released(proxy: FaultProxy) -> None:
    stall = Stall(after_bytes=1000)
    proxy.inject(stall)
    with httpx.stream("GET", f"{proxy.url}/models/{PATH}") as answer:
        proxy.wait_until(lambda: proxy.sent(PATH) == 1000)
        stall.released.set()
        assert answer.read() == MODEL


def test_a_read_timeout_ends_a_stall(proxy: FaultProxy) -> None:
    proxy.inject(Stall(after_bytes=1000))
    with pytest.raises(GenericError, match="TimedOut"):
        reader_of(proxy, read_timeout="100ms").read()
    assert proxy.sent(PATH) == 1000


def test_a_status_is_returned_once_with_retry_after(proxy: FaultProxy) -> None:
    proxy.inject(Status(429, retry_after="7"))
    answers = [httpx.get(f"{proxy.url}/models/{PATH}") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [429, 200]
    assert answers[0].headers["Retry-After"] == "7"


def test_wrong_bytes_have_the_right_length(proxy: FaultProxy) -> None:
    proxy.inject(WrongBytes())
    wrong = reader_of(proxy).read()
    assert len(wrong) == len(MODEL)
    assert wrong != MODEL


def test_a_drip_is_slow_and_complete(proxy: FaultProxy) -> None:
    proxy.inject(Drip(chunk_bytes=len(MODEL) // 4, every_seconds=0.05))
    started = time.monotonic()
    assert reader_of(proxy).read() == MODEL
    assert time.monotonic() - started >= 0.15


def test_a_server_without_range_returns_the_whole_object(proxy: FaultProxy) -> None:
    """obstore raises an error, so a client has to request the whole object."""
    proxy.inject(WithoutRange())
    with pytest.raises(NotSupportedError, match="Range"):
        reader_of(proxy).read(offset=1000)
    assert [(each.status, each.range) for each in proxy.exchanges] == [(200, "bytes=1000-")]


def test_refused_connections_are_accepted_again(proxy: FaultProxy) -> None:
    reader = reader_of(proxy)
    with proxy.refusing(), pytest.raises(GenericError, match="Connection refused"):
        reader.read()
    assert reader.read() == MODEL


def test_faults_apply_to_their_path_only(proxy: FaultProxy) -> None:
    proxy.inject(Status(500), path="model.onnx")
    assert httpx.get(f"{proxy.url}/models/other").status_code == 404
    assert httpx.get(f"{proxy.url}/models/{PATH}").status_code == 500
