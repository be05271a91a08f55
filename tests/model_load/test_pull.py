"""Pulling from every kind of store, with failing networks and disks."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import httpx
import pytest

from artifact.contract import read_contract
from artifact.errors import StoreError
from artifact.uri import ArtifactUri
from artifact.verify import sha256_of
from model_load.cache import Cache, lock_for_use
from model_load.pull import Deadline, Pull, PullError
from tests.artifacts import put_model
from tests.fakes import FAKES, FakeFileStore, FakeHttpStore
from tests.fault_proxy import (
    Cut,
    Drip,
    Fault,
    FaultProxy,
    Stall,
    Status,
    WithoutRange,
    WrongBytes,
)
from tests.servers import ROWS, start, wait_until

# Enough for several chunks of a stream, so that it can be cut in the middle.
_PADDING = b"\x00" * 3_000_000
MODEL = "model.onnx"
# A local store is opened in place: nothing is transferred.
REMOTE = [kind for kind in FAKES if kind != "file"]


@pytest.fixture(scope="module", params=FAKES)
def fake(
    request: pytest.FixtureRequest, store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeFileStore]:
    """Each kind of store in turn, with the iris model in it."""
    with FAKES[request.param](tmp_path_factory.mktemp(request.param)) as started:
        started.publish(store / "iris" / "1")
        started.put("iris/aliases/stable", b"1\n")
        yield started


@pytest.fixture(scope="module")
def large(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose model is some megabytes: the iris model and padding."""
    directory = Path(
        shutil.copytree(store / "iris" / "1", tmp_path_factory.mktemp("large") / "iris" / "1")
    )
    put_model(directory, (directory / MODEL).read_bytes() + _PADDING)
    return directory


@pytest.fixture
def web(large: Path, tmp_path: Path) -> Iterator[FakeHttpStore]:
    """A static server with the large artifact."""
    (tmp_path / "web").mkdir()
    with FakeHttpStore(tmp_path / "web") as started:
        started.publish(large)
        yield started


@pytest.fixture
def proxy(web: FakeHttpStore) -> Iterator[FaultProxy]:
    """A proxy in front of the static server that injects faults."""
    with FaultProxy(web.address) as started:
        yield started


def pulled(proxy: FaultProxy, cache: Path, *, seconds: float = 20, silence: float = 1) -> Path:
    """Pull the large artifact through the proxy."""
    uri = ArtifactUri.parse(f"{proxy.url}/models/iris/1")
    return Pull(uri, Deadline(seconds, silence)).download_to_cache(Cache(cache, None))


@pytest.mark.parametrize("named", ["iris/1", "iris@stable"])
def test_a_server_pulls_from_every_kind_of_store(
    fake: FakeFileStore, named: str, tmp_path: Path
) -> None:
    """A server needs only a URI and the environment."""
    settings = {**fake.environment, "MODEL_CACHE_DIR": str(tmp_path)}

    with start("model_load", f"{fake.uri}/{named}", **settings) as server:
        server.wait_until_ready()
        answer = httpx.post(f"{server.url}/predict/label", json={"data": ROWS})

    assert answer.json() == {"prediction": ["setosa", "virginica"]}
    assert answer.headers["model-version"] == "1"


@pytest.mark.parametrize("fake", REMOTE, indirect=True)
def test_a_second_start_on_a_node_transfers_the_contract_only(
    fake: FakeFileStore, tmp_path: Path
) -> None:
    """The time of a scale-out must not grow with the size of the model."""
    with FaultProxy(fake.address) as proxy:
        place = fake.at(proxy.url)
        settings = {**place.environment, "MODEL_CACHE_DIR": str(tmp_path)}
        for _ in range(2):
            with start("model_load", f"{place.uri}/iris/1", **settings) as server:
                server.wait_until_ready()

        paths = [unquote(urlsplit(exchange.path).path) for exchange in proxy.exchanges]

    files = sorted(path.rpartition("/")[2] for path in paths)
    assert files == ["contract.json", "contract.json", MODEL]


@pytest.mark.parametrize(
    "fault",
    [Cut(1_500_000), Stall(1_500_000), Status(500), Status(429)],
    ids=lambda fault: type(fault).__name__,
)
def test_a_request_is_retried_after_a_network_error(
    proxy: FaultProxy, fault: Fault, tmp_path: Path
) -> None:
    proxy.inject(fault, path=MODEL)

    directory = pulled(proxy, tmp_path)

    contract = read_contract(directory)
    assert sha256_of(directory / MODEL) == contract.model.sha256
    assert len([exchange for exchange in proxy.exchanges if MODEL in exchange.path]) == 2


def test_an_interrupted_download_resumes(proxy: FaultProxy, tmp_path: Path) -> None:
    """A lost connection must not cost a second download of hundreds of megabytes."""
    proxy.inject(Cut(1_500_000), path=MODEL)

    directory = pulled(proxy, tmp_path)

    first, second = [exchange for exchange in proxy.exchanges if MODEL in exchange.path]
    assert first.range is None
    assert second.range is not None
    size = read_contract(directory).model.size_bytes
    assert first.bytes_sent + second.bytes_sent < size * 1.5


def test_without_range_an_interrupted_download_starts_again(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.inject(Cut(1_500_000), WithoutRange(), path=MODEL)

    directory = pulled(proxy, tmp_path)

    assert sha256_of(directory / MODEL) == read_contract(directory).model.sha256


def test_an_object_that_changes_during_the_download_is_never_mixed(
    proxy: FaultProxy, web: FakeHttpStore, large: Path, tmp_path: Path
) -> None:
    """The first half of one model and the second half of another are not a model."""
    model = (large / MODEL).read_bytes()
    web.put(f"iris/1/{MODEL}", model[::-1])
    proxy.inject(Cut(1_500_000, hook=lambda: web.put(f"iris/1/{MODEL}", model)), path=MODEL)

    directory = pulled(proxy, tmp_path)

    assert (directory / MODEL).read_bytes() == model


def test_a_corrupt_download_is_repeated_once(proxy: FaultProxy, tmp_path: Path) -> None:
    """A proxy may have an old copy."""
    proxy.inject(WrongBytes(), path=MODEL)

    directory = pulled(proxy, tmp_path)

    assert sha256_of(directory / MODEL) == read_contract(directory).model.sha256


def test_a_download_that_is_corrupt_twice_is_rejected(proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.inject(WrongBytes(), WrongBytes(), path=MODEL)

    with pytest.raises(PullError, match=r"sha256 expected .*, got .*, twice"):
        pulled(proxy, tmp_path / "cache")

    left = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert left == {"pull.lock"}


@pytest.mark.parametrize(
    ("status", "message"),
    [(403, "Check the credentials"), (401, "credentials"), (404, "not found")],
)
def test_client_errors_are_not_retried(
    proxy: FaultProxy, status: int, message: str, tmp_path: Path
) -> None:
    proxy.inject(Status(status), path="contract.json")

    with pytest.raises(PullError, match=message) as error:
        pulled(proxy, tmp_path)

    assert f"{proxy.url}/models/iris/1/contract.json" in str(error.value)
    assert len(proxy.exchanges) == 1


def test_a_pull_from_an_unreachable_store_ends_at_the_deadline(tmp_path: Path) -> None:
    """A pod that hangs is worse than one that reports the error and is restarted."""
    (tmp_path / "web").mkdir()
    with FakeHttpStore(tmp_path / "web") as gone:
        uri = ArtifactUri.parse(f"{gone.uri}/iris/1")
    started = time.monotonic()

    with pytest.raises(PullError, match=r"gave up after 1 s and \d+ attempts: .*Check that"):
        Pull(uri, Deadline(1)).download_to_cache(Cache(tmp_path / "cache", None))

    assert time.monotonic() - started < 3


def test_a_full_disk_is_reported_before_the_download(
    proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1))

    with pytest.raises(StoreError, match=r"MODEL_CACHE_DIR: .* expected \d+ bytes free, got 1"):
        pulled(proxy, tmp_path)

    assert [exchange for exchange in proxy.exchanges if MODEL in exchange.path] == []


def test_a_corrupted_cache_entry_is_downloaded_again(proxy: FaultProxy, tmp_path: Path) -> None:
    model = pulled(proxy, tmp_path) / MODEL
    content = bytearray(model.read_bytes())
    content[7] ^= 1
    model.resolve().write_bytes(content)

    again = pulled(proxy, tmp_path)

    assert sha256_of(again / MODEL) == read_contract(again).model.sha256


def test_concurrent_pulls_download_a_model_once(proxy: FaultProxy, tmp_path: Path) -> None:
    """The second pull waits for the first and then uses its model."""
    stall = Stall(1_500_000)
    proxy.inject(stall, path=MODEL)
    directories: list[Path] = []
    pulls = [
        threading.Thread(target=lambda: directories.append(pulled(proxy, tmp_path, silence=30)))
        for _ in range(2)
    ]
    for pull in pulls:
        pull.start()
    proxy.wait_until(lambda: len([e for e in proxy.exchanges if "contract" in e.path]) == 2)
    stall.released.set()
    for pull in pulls:
        pull.join(30)

    assert len(directories) == 2
    assert len([exchange for exchange in proxy.exchanges if exchange.path.endswith(MODEL)]) < 3
    assert sha256_of(directories[0] / MODEL) == read_contract(directories[0]).model.sha256


def test_a_pull_does_not_wait_for_a_server_of_the_same_model(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    """In a rolling update the old pod may serve the model that the new one pulls."""
    lock = lock_for_use(pulled(proxy, tmp_path))
    try:
        assert pulled(proxy, tmp_path, seconds=2)
    finally:
        os.close(lock)


def test_a_slow_download_ends_at_the_deadline(proxy: FaultProxy, tmp_path: Path) -> None:
    """The read timeout does not end a connection that delivers a few bytes now and then."""
    proxy.inject(Drip(chunk_bytes=65_536, every_seconds=0.1), path=MODEL)

    with pytest.raises(PullError, match=r"gave up after 1 s with \d+ of \d+ bytes"):
        pulled(proxy, tmp_path, seconds=1)


def test_a_bounded_cache_evicts_the_least_recently_used_model(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    size = len(_PADDING)
    old, newer = (Cache(tmp_path, None), Cache(tmp_path, size + 2000))
    for number, sha256 in enumerate(("0" * 64, "1" * 64)):
        with old.locked_entry(sha256, 1) as entry:
            entry.path.write_bytes(b"x" * 1000)
            os.utime(entry.directory, (number, number))

    Pull(ArtifactUri.parse(f"{proxy.url}/models/iris/1"), Deadline(20)).download_to_cache(newer)

    assert not (tmp_path / ("0" * 64)).exists()
    assert (tmp_path / ("1" * 64)).exists()


def test_a_full_disk_makes_the_cache_evict_the_least_recently_used_model(
    proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that watches an alias for a year must not stop because the disk is full."""
    with Cache(tmp_path, None).locked_entry("0" * 64, 1) as entry:
        entry.path.write_bytes(b"x" * 1000)
    (tmp_path / "of others").mkdir()
    monkeypatch.setattr(
        "shutil.disk_usage", lambda _: SimpleNamespace(free=1 if entry.path.exists() else 1e9)
    )

    assert (pulled(proxy, tmp_path) / MODEL).is_file()

    assert not entry.path.exists()
    assert (tmp_path / "of others").is_dir()


def test_a_bounded_cache_never_evicts_a_served_model(proxy: FaultProxy, tmp_path: Path) -> None:
    served = pulled(proxy, tmp_path)
    lock = lock_for_use(served)
    try:
        with (
            Cache(tmp_path, 4_000_000).locked_entry("2" * 64, 1) as entry,
            pytest.raises(StoreError, match="MODEL_CACHE_MAX_BYTES: expected at least"),
        ):
            Cache(tmp_path, 4_000_000).evict_until_fits(entry, 2_000_000)
    finally:
        os.close(lock)

    assert (served / MODEL).is_file()


def has_ended(pid: str) -> bool:
    """Whether a process has ended, or is a zombie that its parent has not reaped yet."""
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


def test_term_during_a_pull_ends_at_once_and_leaves_no_child(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    """obstore does not let Python's signal handlers run; a pod must still end."""
    proxy.inject(Stall(1_500_000), path=MODEL)
    settings = {"MODEL_CACHE_DIR": str(tmp_path / "cache")}
    server = start("model_load", f"{proxy.url}/models/iris/1", **settings)
    proxy.wait_until(lambda: any(MODEL in exchange.path for exchange in proxy.exchanges))
    task = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    (child,) = task.read_text().split()
    started = time.monotonic()

    server.process.send_signal(signal.SIGTERM)
    server.wait()

    assert time.monotonic() - started < 2
    wait_until(lambda: has_ended(child))  # the kernel kills it, after a short time


def test_a_missing_version_stops_the_start_without_a_traceback(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    settings = {"MODEL_CACHE_DIR": str(tmp_path / "cache")}

    with start("model_load", f"{proxy.url}/models/iris/2", **settings) as server:
        assert server.wait() == 1

    log = "".join(server.logged)
    assert f"{proxy.url}/models/iris/2/contract.json: not found" in log
    assert "Traceback" not in log


def pull_command(**environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m model_load pull --to TO`."""
    to = environment.pop("TO")
    return subprocess.run(
        [sys.executable, "-m", "model_load", "pull", "--to", to],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_pull_command_leaves_a_directory_for_a_server_without_credentials(
    fake: FakeFileStore, tmp_path: Path
) -> None:
    """An init container has the credentials; the server only needs a directory."""
    done = pull_command(
        MODEL_URI=f"{fake.uri}/iris@stable", TO=str(tmp_path / "model"), **fake.environment
    )

    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["contract.json", MODEL]
    with start("model_load", "", MODEL_DIR=str(tmp_path / "model")) as server:
        server.wait_until_ready()
        assert httpx.get(f"{server.url}/metadata").json()["version"] == "1"


def test_a_failed_pull_command_leaves_no_files(proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.inject(WrongBytes(), WrongBytes(), path=MODEL)

    done = pull_command(MODEL_URI=f"{proxy.url}/models/iris/1", TO=str(tmp_path / "model"))

    assert done.returncode == 1
    assert "twice" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "model").iterdir()) == []


def test_two_sources_are_rejected(store: Path) -> None:
    """Which of the two is served must not be guessed."""
    path = store / "iris" / "1"

    with start("model_load", path, MODEL_DIR=str(path)) as server:
        assert server.wait() == 1

    message = "MODEL_URI or MODEL_DIR: expected one of them to be set, both are"
    assert message in "".join(server.logged)


@pytest.mark.parametrize(
    "uri", ["ftp://host/iris/1", "s3:///iris/1", "https://host/a/../iris/1", "s3://bucket/iris/a b"]
)
def test_an_invalid_uri_stops_the_start_and_is_named(uri: str, tmp_path: Path) -> None:
    with start("model_load", uri, MODEL_CACHE_DIR=str(tmp_path), MODEL_PULL_SECONDS="1") as server:
        assert server.wait() == 1

    log = "".join(server.logged)
    assert uri.rpartition("/")[2] in log
    assert "Traceback" not in log
