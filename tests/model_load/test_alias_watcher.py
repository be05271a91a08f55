"""Watching an alias: no request fails during a swap, and bad models change nothing."""

import asyncio
import itertools
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import onnx
import pytest

from artifact.contract import read_contract
from tests.artifacts import cut_model, flipped_byte, put_model, rewrite
from tests.fakes import FakeFileStore, FakeHttpStore
from tests.fault_proxy import FaultProxy, Stall
from tests.servers import start, wait_until, workers
from training.export import ATOL, RTOL

POLL = {"MODEL_POLL_SECONDS": "0.05"}
CONNECTIONS = 32
FLOWER = [[5.9, 3.0, 4.2, 1.5]]


class WatchingServer:
    """A server that watches its own alias, which names version 1, and its store."""

    _numbers = itertools.count()

    def __init__(self, store: FakeFileStore, uri: str, cache: Path, **settings: str) -> None:
        self.store = store
        self.alias = f"stable-{next(self._numbers)}"
        self.move("1")
        self.server = start(
            "model_load",
            f"{uri}/flowers@{self.alias}",
            MODEL_CACHE_DIR=str(cache),
            **POLL,
            **settings,
        )
        self.server.wait_until_ready()
        self.client = httpx.Client(base_url=self.server.url, timeout=20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.stop()

    def move(self, version: str) -> None:
        """Point the alias at another version."""
        self.write(f"{version}\n".encode())

    def move_and_stall(self, proxy: FaultProxy) -> Stall:
        """Point the alias at version 3 and stall its pull in a proxy."""
        stall = Stall(1_000_000)
        proxy.inject(stall, path="3/model.onnx")
        self.move("3")
        proxy.wait_until(
            lambda: any("3/model.onnx" in exchange.path for exchange in proxy.exchanges)
        )
        return stall

    def write(self, content: bytes) -> None:
        """Write any content into the alias."""
        self.store.put(f"flowers/aliases/{self.alias}", content)

    def served(self) -> str:
        """The version of a response."""
        answer = self.client.post("/predict", json={"data": FLOWER})
        assert answer.status_code == 200
        return answer.headers["model-version"]

    def wait_until_served(self, version: str) -> None:
        """Wait until responses come from a version."""
        wait_until(lambda: self.served() == version)

    def degraded(self) -> str | None:
        """The field `degraded` of /metadata."""
        reason: str | None = self.client.get("/metadata").json()["degraded"]
        return reason

    def metric(self, name: str) -> float:
        """The value of a metric."""
        lines = self.client.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).rpartition(" ")[2])

    def workers(self) -> set[int]:
        """The process ids of the workers."""
        return workers(self.server.url)

    def children(self) -> set[int]:
        """The processes that the server's master started."""
        pid = self.server.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return {int(child) for child in children}


@pytest.fixture(scope="module")
def versions(two_csv_versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts: 1 and 2 predict differently; 3 is like 2, and larger."""
    path = tmp_path_factory.mktemp("versions") / "flowers"
    for version, of in (("1", "1"), ("2", "2"), ("3", "2")):
        shutil.copytree(two_csv_versions / "flowers" / of, path / version)
    model = onnx.load(path / "3" / "model.onnx")
    model.doc_string = "large " * 5_000_000
    put_model(path / "3", model)
    rewrite(path / "3", version="3")
    return path


@pytest.fixture(scope="module")
def bucket(versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHttpStore]:
    """A model store behind HTTP, with versions 1 to 3."""
    with FakeHttpStore(tmp_path_factory.mktemp("web")) as store:
        for version in ("1", "2", "3"):
            store.publish(versions / version)
        yield store


@pytest.fixture
def watching(bucket: FakeHttpStore, tmp_path: Path) -> Iterator[Callable[..., WatchingServer]]:
    """Start servers that watch an alias in the bucket."""
    started: list[WatchingServer] = []

    def start_one(uri: str = bucket.uri, **settings: str) -> WatchingServer:
        started.append(WatchingServer(bucket, uri, tmp_path / "cache", **settings))
        return started[-1]

    yield start_one
    for server in started:
        server.__exit__()


def same(first: Any, second: Any) -> bool:
    """Whether two predictions are equal; batching changes the last bits of a float."""
    return np.shape(first) == np.shape(second) and np.allclose(first, second, rtol=RTOL, atol=ATOL)


async def request_until(
    ended: asyncio.Event, url: str, right: dict[str, Any], problems: list[str]
) -> int:
    """Send requests over one connection and record wrong responses; return their number."""
    count = 0
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        while not ended.is_set():
            try:
                answer = await client.post("/predict", json={"data": FLOWER})
            except httpx.HTTPError as error:
                problems.append(repr(error))
                continue
            count += 1
            version = answer.headers.get("model-version", "")
            if answer.status_code != 200 or not same(
                answer.json()["prediction"], right.get(version)
            ):
                problems.append(f"{answer.status_code} {version} {answer.text}")
    return count


def test_no_request_fails_during_fifty_swaps_under_load(
    watching: Callable[..., WatchingServer], record_property: Callable[[str, object], None]
) -> None:
    """An update must not stop the service, nor mix two models in one response."""
    server = watching()
    right = {}
    for version in ("1", "2"):
        server.move(version)
        server.wait_until_served(version)
        answer = server.client.post("/predict", json={"data": FLOWER})
        right[version] = answer.json()["prediction"]
    assert not same(right["1"], right["2"])
    problems: list[str] = []

    async def load_and_move() -> int:
        ended = asyncio.Event()
        clients = [
            asyncio.create_task(request_until(ended, server.server.url, right, problems))
            for _ in range(CONNECTIONS)
        ]
        for version in itertools.islice(itertools.cycle("12"), 50):
            server.move(version)
            await asyncio.to_thread(server.wait_until_served, version)
        ended.set()
        return sum(await asyncio.gather(*clients))

    requests = asyncio.run(load_and_move())

    record_property("figure", f"50 moves under load: {requests} requests, {len(problems)} failed")
    assert problems == []
    assert requests > 50 * CONNECTIONS
    assert server.metric('model_reloads_total{outcome="success"}') == 51
    assert server.metric('model_reloads_total{outcome="failure"}') == 0
    assert server.metric("model_reload_seconds_count") == 51
    assert 0 < server.metric("model_reload_seconds_sum") < 600


def test_memory_does_not_grow_with_swaps(
    watching: Callable[..., WatchingServer], record_property: Callable[[str, object], None]
) -> None:
    """A replica that watches an alias for a year swaps often."""
    server = watching()
    after = {}
    for count, version in enumerate(itertools.islice(itertools.cycle("21"), 200), 1):
        server.move(version)
        server.wait_until_served(version)
        if count in (5, 200):
            processes = {server.server.process.pid} | server.children()
            after[count] = sum(memory_kilobytes(pid) for pid in processes)

    record_property("figure", f"memory, 200 swaps against 5: {after[200] / after[5]:.3f}")
    assert after[200] < 1.1 * after[5]


def memory_kilobytes(pid: int) -> int:
    """The process's share of the memory that it uses (PSS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def missing(_: Path) -> None:
    """Publish nothing under the version."""


def another_golden_value(artifact: Path) -> None:
    golden = read_contract(artifact).golden
    (name,) = golden.outputs.keys() & {"probabilities"}
    outputs = json.loads(json.dumps(golden.outputs))
    outputs[name][0][0] += 0.5
    rewrite(artifact, golden=golden.model_copy(update={"outputs": outputs}))


def no_contract(artifact: Path) -> None:
    (artifact / "contract.json").write_text("{}")


def another_name(artifact: Path) -> None:
    rewrite(artifact, name="weeds")


BAD = {
    missing: "not found",
    flipped_byte: "sha256 expected",
    cut_model: "sha256 expected",
    another_golden_value: "golden rows",
    no_contract: "contract.json",
    another_name: "expected the artifact flowers/",
}


@pytest.fixture(scope="module")
def shared_server(
    bucket: FakeHttpStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WatchingServer]:
    """A server for tests that restore its state."""
    cache = tmp_path_factory.mktemp("cache")
    with WatchingServer(bucket, bucket.uri, cache, MODEL_PULL_SECONDS="0.5") as server:
        yield server


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_a_bad_version_leaves_the_last_good_one_serving(
    spoil: Callable[[Path], None], shared_server: WatchingServer, versions: Path, tmp_path: Path
) -> None:
    """A bad upload must not take down a healthy replica, and must not go unnoticed."""
    server, version = shared_server, spoil.__name__
    artifact = Path(shutil.copytree(versions / "2", tmp_path / "flowers" / version))
    rewrite(artifact, version=version)
    spoil(artifact)
    if spoil is not missing:
        server.store.publish(artifact)
    failures = server.metric('model_reloads_total{outcome="failure"}')

    server.move(version)
    wait_until(lambda: server.metric('model_reloads_total{outcome="failure"}') >= failures + 2)

    wait_until(lambda: server.degraded() is not None)
    reason = str(server.degraded())
    assert reason.startswith(f"flowers/{version}: ")
    assert BAD[spoil] in reason
    assert server.store.uri not in reason
    assert server.served() == "1"
    assert server.client.get("/v2/health/ready").json() == {"ready": True}
    assert server.metric("model_degraded") == 1
    logged = [line for line in server.server.events("model_refused") if line["version"] == version]
    assert [line["level"] for line in logged] == ["error"]

    server.move("1")
    wait_until(lambda: server.degraded() is None)
    assert server.metric("model_degraded") == 0


def test_a_rollback_and_a_roll_forward_are_moves_of_the_alias(
    shared_server: WatchingServer,
) -> None:
    for version in ("2", "1"):
        shared_server.move(version)
        shared_server.wait_until_served(version)

        document = shared_server.client.get("/openapi.json").json()
        assert document["info"]["version"] == version


def test_a_version_that_is_withdrawn_while_it_is_pulled_is_never_served(
    bucket: FakeHttpStore, watching: Callable[..., WatchingServer]
) -> None:
    """A rollback must not wait for the pull of the version that it replaces."""
    with FaultProxy(bucket.address) as proxy:
        server = watching(bucket.at(proxy.url).uri)
        stall = server.move_and_stall(proxy)

        server.move("2")

        server.wait_until_served("2")
        stall.released.set()
        loaded = [line["version"] for line in server.server.events("model_loaded")]
        assert loaded == ["1", "2"]


def test_golden_rows_that_never_end_are_rejected(
    watching: Callable[..., WatchingServer], versions: Path, tmp_path: Path
) -> None:
    """The watcher must not hang with the model that it verifies."""
    artifact = Path(shutil.copytree(versions / "1", tmp_path / "flowers" / "endless"))
    put_model(artifact, endless(onnx.load(artifact / "model.onnx")))
    rewrite(artifact, version="endless")
    server = watching(MODEL_PULL_SECONDS="1")
    server.store.publish(artifact)

    server.move("endless")

    wait_until(lambda: server.degraded() is not None)
    assert server.degraded() == "flowers/endless: its golden rows took longer than 1 s"
    server.move("2")
    server.wait_until_served("2")


def endless(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model after a loop of 10^15 rounds."""
    helper, kinds = onnx.helper, onnx.TensorProto
    rounds = helper.make_tensor("rounds", kinds.INT64, [], [10**15])
    going = helper.make_tensor("going", kinds.BOOL, [], [True])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going_in"], ["going_out"]),
            helper.make_node("Neg", ["x_in"], ["x_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", kinds.INT64, []),
            helper.make_tensor_value_info("going_in", kinds.BOOL, []),
            helper.make_tensor_value_info("x_in", kinds.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("going_out", kinds.BOOL, []),
            helper.make_tensor_value_info("x_out", kinds.FLOAT, None),
        ],
    )
    graph = model.graph
    (model_input,) = graph.input
    for node in graph.node:
        for number, name in enumerate(node.input):
            if name == model_input.name:
                node.input[number] = "looped"
    graph.initializer.extend([rounds, going])
    loop = helper.make_node("Loop", ["rounds", "going", model_input.name], ["looped"], body=body)
    graph.node.insert(0, loop)
    return model


def test_a_watcher_that_is_killed_repeatedly_affects_no_worker(
    watching: Callable[..., WatchingServer],
) -> None:
    """It may run out of memory for days: no descriptors may leak."""
    server = watching()
    workers = server.workers()
    descriptors = Path(f"/proc/{server.server.process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(3):
        wait_until(lambda: len(server.children() - workers) == 1)
        (watcher,) = server.children() - workers
        os.kill(watcher, signal.SIGKILL)
        wait_until(lambda: watcher not in server.children())  # noqa: B023
    wait_until(lambda: len(server.children() - workers) == 1)

    # The master's own end of a new watcher's pipe is open for a moment.
    wait_until(lambda: len(list(descriptors.iterdir())) <= before)
    server.move("2")
    server.wait_until_served("2")
    assert server.workers() == workers


@pytest.mark.parametrize("content", [b"../../etc\n", b"\xff", b""])
def test_an_alias_that_names_no_version_changes_nothing(
    content: bytes, shared_server: WatchingServer
) -> None:
    shared_server.write(content)

    wait_until(lambda: shared_server.degraded() is not None)
    assert str(shared_server.degraded()).startswith(f"flowers@{shared_server.alias}: ")
    assert shared_server.served() == "1"

    shared_server.move("1")
    wait_until(lambda: shared_server.degraded() is None)


def test_the_server_keeps_serving_while_the_store_is_unreachable(
    bucket: FakeHttpStore, watching: Callable[..., WatchingServer]
) -> None:
    """Only new versions need the store."""
    with FaultProxy(bucket.address) as proxy:
        server = watching(bucket.at(proxy.url).uri)
        with proxy.refusing():
            wait_until(lambda: server.degraded() is not None)
            assert "Check that this process can reach the store" in str(server.degraded())
            assert server.served() == "1"
            server.move("2")

        server.wait_until_served("2")
        wait_until(lambda: server.degraded() is None)


def test_workers_survive_a_killed_verification(
    bucket: FakeHttpStore, watching: Callable[..., WatchingServer]
) -> None:
    """A model that is too large for the memory kills the process that opens it, not a worker."""
    with FaultProxy(bucket.address) as proxy:
        server = watching(bucket.at(proxy.url).uri)
        stall = server.move_and_stall(proxy)
        workers = server.workers()
        (watcher,) = server.children() - workers

        os.kill(watcher, signal.SIGKILL)

        wait_until(lambda: bool(server.server.events("model_refused")))
        (refused,) = server.server.events("model_refused")
        assert refused["reason"] == "the process that verified it was killed. Too little memory?"
        stall.released.set()
        server.wait_until_served("3")
        assert server.workers() == workers


def test_a_bounded_cache_keeps_the_served_version_and_evicts_earlier_ones(
    watching: Callable[..., WatchingServer], versions: Path, tmp_path: Path
) -> None:
    """Space for two models is enough to watch an alias forever."""
    sizes = {version: read_contract(versions / version).model.size_bytes for version in "123"}
    server = watching(MODEL_CACHE_MAX_BYTES=str(sizes["2"] + sizes["3"]))
    for version in ("2", "3", "1"):
        server.move(version)
        server.wait_until_served(version)

    kept = {path.name for path in (tmp_path / "cache").iterdir()}
    assert kept == {read_contract(versions / version).model.sha256 for version in "13"}


def test_the_replacement_of_a_killed_worker_serves_what_its_sibling_serves(
    watching: Callable[..., WatchingServer],
) -> None:
    """Not the version of the start-up, and not the rejected version that the alias names."""
    server = watching(WORKERS="2")
    server.move("2")
    wait_until(lambda: {server.served() for _ in range(20)} == {"2"})
    server.move("nowhere")
    wait_until(lambda: server.degraded() is not None)
    before = server.workers()

    os.kill(min(before), signal.SIGKILL)

    wait_until(lambda: len(server.workers() - before) == 1)
    with httpx.Client(base_url=server.server.url) as client:
        assert {client.get("/metadata").json()["version"] for _ in range(20)} == {"2"}
    server.move("1")
    wait_until(lambda: {server.served() for _ in range(20)} == {"1"})


def test_a_model_that_a_worker_cannot_open_shows_no_path(versions: Path, tmp_path: Path) -> None:
    """Every client may read /metadata."""
    store = FakeFileStore(tmp_path)
    for version in ("1", "3"):
        store.publish(versions / version)
    with WatchingServer(store, str(tmp_path / "models"), tmp_path / "cache") as server:
        (worker,) = server.workers()
        allowed = int(Path(f"/proc/{worker}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(worker, resource.RLIMIT_AS, (allowed + 1_000_000, -1))
        server.move("3")

        wait_until(lambda: server.degraded() is not None)
        assert str(server.degraded()).startswith("3: ")
        assert str(tmp_path) not in str(server.degraded())
        assert server.served() == "1"
        assert server.metric("model_open_failures_total") >= 1
        resource.prlimit(worker, resource.RLIMIT_AS, (-1, -1))
        server.wait_until_served("3")


def test_a_local_store_is_watched_in_place(versions: Path, tmp_path: Path) -> None:
    """A mounted volume or a developer's models/ needs no bucket and no cache."""
    store = FakeFileStore(tmp_path)
    for version in ("1", "2"):
        store.publish(versions / version)
    with WatchingServer(store, str(tmp_path / "models"), tmp_path / "cache", WORKERS="2") as server:
        for version in ("2", "1"):
            server.move(version)
            wait_until(lambda: {server.served() for _ in range(20)} == {version})  # noqa: B023

    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"MODEL_POLL_SECONDS": "0"}, "input should be greater than 0, got '0'"),
        ({}, "expected MODEL_URI to name an alias, as in <store>/iris@stable, got models/iris/1"),
        (
            {"MODEL_URI": "models/iris@stable", "CONTRACT_SHA256": "0" * 64},
            "expected no CONTRACT_SHA256, which pins a version",
        ),
    ],
)
def test_a_setting_that_polling_cannot_use_stops_the_start(
    settings: dict[str, str], message: str
) -> None:
    with start("model_load", "models/iris/1", **{"MODEL_POLL_SECONDS": "5", **settings}) as server:
        assert server.wait() == 1

    assert f"MODEL_POLL_SECONDS: {message}" in "".join(server.logged)
