"""The stores and the faults that tests of pulling rely on do what they are there for."""

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
    STAND_INS,
    FileStandIn,
    HttpStandIn,
    Place,
    S3StandIn,
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


@pytest.fixture(scope="module", params=STAND_INS)
def stand_in(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FileStandIn]:
    """Each kind of store in turn."""
    with STAND_INS[request.param](tmp_path_factory.mktemp(request.param)) as started:
        yield started


@pytest.fixture(scope="module")
def http_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpStandIn]:
    """A store with one object, to be read through a proxy."""
    with HttpStandIn(tmp_path_factory.mktemp("http")) as started:
        started.put(PATH, MODEL)
        yield started


@pytest.fixture
def proxy(http_store: HttpStandIn) -> Iterator[FaultProxy]:
    with FaultProxy(http_store.address) as started:
        yield started


class Reader:
    """obstore as a user's environment makes it, without its own retries."""

    def __init__(self, place: Place, *, read_timeout: str = "10s") -> None:
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
        """Return the object at PATH from an offset on, in small steps."""
        options: obstore.GetOptions = {"range": {"offset": offset}} if offset else {}
        stream = obstore.get(self.store, PATH, options=options).stream(min_chunk_size=1)
        return b"".join(stream)


def test_obstore_reads_what_a_test_put(stand_in: FileStandIn) -> None:
    """Only the URI and the environment lead there: no test configures the product."""
    stand_in.put(PATH, MODEL, cache_control=FOREVER)
    reader = Reader(stand_in.at(stand_in.address))
    assert stand_in.get(PATH) == MODEL
    assert reader.read() == MODEL
    assert reader.read(offset=1000) == MODEL[1000:]
    meta = obstore.head(reader.store, PATH)
    stand_in.put(PATH, MODEL[::-1])
    assert obstore.head(reader.store, PATH)["e_tag"] != meta["e_tag"]
    assert PATH in stand_in.list()
    stand_in.delete(PATH)
    assert stand_in.list() == []
    with pytest.raises(FileNotFoundError):
        reader.read()


def test_a_test_sees_what_obstore_put_and_it_is_put_once(stand_in: FileStandIn) -> None:
    """A conditional put is what refuses to publish a version twice."""
    reader = Reader(Place(stand_in.publish_uri, stand_in.environment))
    cacheable = not stand_in.publish_uri.startswith("file:")
    attributes = {"Cache-Control": FOREVER} if cacheable else None
    obstore.put(reader.store, "iris/2/contract.json", b"{}", mode="create", attributes=attributes)
    with pytest.raises(AlreadyExistsError):
        obstore.put(reader.store, "iris/2/contract.json", b"other", mode="create")
    assert stand_in.get("iris/2/contract.json") == b"{}"
    if cacheable:
        assert stand_in.cache_control("iris/2/contract.json") == FOREVER
    stand_in.delete("iris/2/contract.json")


def test_a_large_object_is_put_in_parts(stand_in: FileStandIn) -> None:
    reader = Reader(Place(stand_in.publish_uri, stand_in.environment))
    large = MODEL * 24
    obstore.put(reader.store, PATH, large, chunk_size=5 * 1024 * 1024, use_multipart=True)
    assert stand_in.get(PATH) == large
    stand_in.delete(PATH)


def test_a_stopped_store_refuses_connections(tmp_path: Path) -> None:
    with HttpStandIn(tmp_path) as started:
        started.put(PATH, MODEL)
    with pytest.raises(GenericError, match="Connection refused"):
        Reader(started.at(started.address)).read()


def test_s3_works_through_a_proxy(tmp_path: Path) -> None:
    with S3StandIn(tmp_path) as s3, FaultProxy(s3.address) as proxy:
        s3.put(PATH, MODEL)
        proxy.inject(Status(503))
        reader = Reader(s3.at(proxy.url))
        with pytest.raises(GenericError, match="503"):
            reader.read()
        assert reader.read() == MODEL
        assert [one.status for one in proxy.exchanges] == [503, 200]


def test_a_missing_store_skips_but_fails_on_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no node"):
        unavailable("no node")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="no node"):
        unavailable("no node")


def reader_of(proxy: FaultProxy, *, read_timeout: str = "10s") -> Reader:
    return Reader(Place(f"{proxy.url}/models"), read_timeout=read_timeout)


def test_without_a_fault_all_passes_and_is_recorded(proxy: FaultProxy) -> None:
    assert reader_of(proxy).read(offset=1000) == MODEL[1000:]
    (exchange,) = proxy.exchanges
    assert (exchange.method, exchange.path) == ("GET", f"/models/{PATH}")
    assert (exchange.status, exchange.range) == (206, "bytes=1000-")
    proxy.wait_until(lambda: proxy.sent(PATH) == len(MODEL) - 1000)


def test_a_cut_comes_after_so_many_bytes(proxy: FaultProxy) -> None:
    proxy.inject(Cut(after_bytes=70_000))
    with pytest.raises(GenericError, match="body"):
        reader_of(proxy).read()
    assert proxy.sent(PATH) == 70_000


def test_a_cut_may_change_the_object(proxy: FaultProxy, http_store: HttpStandIn) -> None:
    reader = reader_of(proxy)
    before = obstore.head(reader.store, PATH)["e_tag"]
    proxy.inject(Cut(after_bytes=1000, hook=lambda: http_store.put(PATH, MODEL[::-1])))
    with pytest.raises(GenericError):
        reader.read()
    try:
        assert obstore.head(reader.store, PATH)["e_tag"] != before
    finally:
        http_store.put(PATH, MODEL)


def test_a_dropped_connection_has_no_answer(proxy: FaultProxy) -> None:
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


def test_a_stall_is_noticed_by_who_has_a_read_timeout(proxy: FaultProxy) -> None:
    proxy.inject(Stall(after_bytes=1000))
    with pytest.raises(GenericError, match="TimedOut"):
        reader_of(proxy, read_timeout="100ms").read()
    assert proxy.sent(PATH) == 1000


def test_a_status_is_answered_once_with_when_to_come_back(proxy: FaultProxy) -> None:
    proxy.inject(Status(429, retry_after="7"))
    answers = [httpx.get(f"{proxy.url}/models/{PATH}") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [429, 200]
    assert answers[0].headers["Retry-After"] == "7"


def test_wrong_bytes_have_the_right_length(proxy: FaultProxy) -> None:
    proxy.inject(WrongBytes())
    wrong = reader_of(proxy).read()
    assert len(wrong) == len(MODEL)
    assert wrong != MODEL


def test_a_drip_is_slow_but_whole(proxy: FaultProxy) -> None:
    proxy.inject(Drip(chunk_bytes=len(MODEL) // 4, every_seconds=0.05))
    started = time.monotonic()
    assert reader_of(proxy).read() == MODEL
    assert time.monotonic() - started >= 0.15


def test_a_server_without_range_answers_with_everything(proxy: FaultProxy) -> None:
    """obstore takes that for an error, so that a client has to ask again, for all of it."""
    proxy.inject(WithoutRange())
    with pytest.raises(NotSupportedError, match="Range"):
        reader_of(proxy).read(offset=1000)
    assert [(one.status, one.range) for one in proxy.exchanges] == [(200, "bytes=1000-")]


def test_refused_connections_are_accepted_again(proxy: FaultProxy) -> None:
    reader = reader_of(proxy)
    with proxy.refusing(), pytest.raises(GenericError, match="Connection refused"):
        reader.read()
    assert reader.read() == MODEL


def test_faults_wait_for_the_path_that_they_are_for(proxy: FaultProxy) -> None:
    proxy.inject(Status(500), path="model.onnx")
    assert httpx.get(f"{proxy.url}/models/other").status_code == 404
    assert httpx.get(f"{proxy.url}/models/{PATH}").status_code == 500
