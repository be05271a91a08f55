"""Publishing into a store: at once or not at all."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from artifact.contract import Contract, read_contract
from artifact.directory_store import publish, set_alias, store_directory
from artifact.errors import StoreError
from artifact.verify import differences
from training.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact to publish again elsewhere."""
    return Path(train(dataset="iris", version="1", store=tmp_path_factory.mktemp("trained")))


@pytest.fixture
def contract(trained: Path) -> Contract:
    return read_contract(trained)


@pytest.fixture
def model(trained: Path) -> bytes:
    return (trained / "model.onnx").read_bytes()


def as_version(contract: Contract, version: str) -> Contract:
    return contract.model_copy(update={"version": version})


def everything(store: Path) -> list[str]:
    return sorted(str(path.relative_to(store)) for path in store.rglob("*"))


@pytest.fixture
def private_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("private_umask")
def test_a_server_of_another_user_can_read_the_store(
    tmp_path: Path, contract: Contract, model: bytes
) -> None:
    """A container runs as somebody else than who trained, whose umask may be 077."""
    store = tmp_path / "deep" / "store"
    publish(store, contract, model)
    publish(store, as_version(contract, "2"), model)
    set_alias(store, "iris", "stable", "1")
    for path in [tmp_path / "deep", store, *store.rglob("*")]:
        expected = 0o755 if path.is_dir() else 0o644
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
    assert everything(store) == [
        "iris", "iris/1", "iris/1/contract.json", "iris/1/model.onnx",
        "iris/2", "iris/2/contract.json", "iris/2/model.onnx",
        "iris/aliases", "iris/aliases/stable",
    ]  # fmt: skip


def test_what_is_published_is_what_was_trained(
    tmp_path: Path, trained: Path, contract: Contract, model: bytes
) -> None:
    path = publish(tmp_path, contract, model)
    for name in ("model.onnx", "contract.json"):
        assert (path / name).read_bytes() == (trained / name).read_bytes()


def test_an_existing_version_is_never_overwritten(
    tmp_path: Path, contract: Contract, model: bytes
) -> None:
    publish(tmp_path, contract, model)
    other = contract.model_copy(update={"owner": "somebody else"})
    with pytest.raises(StoreError, match="this version exists"):
        publish(tmp_path, other, model)
    assert read_contract(tmp_path / "iris" / "1").owner == contract.owner


def test_a_version_that_appears_meanwhile_is_not_overwritten(
    tmp_path: Path, contract: Contract, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where directories cannot be locked (NFS) two trainings may both find the name free."""
    publish(tmp_path, contract, model)
    before = (tmp_path / "iris/1/contract.json").read_bytes()
    monkeypatch.setattr("artifact.directory_store.refuse_existing", lambda *_: None)
    with pytest.raises(StoreError, match="cannot be published, Directory not empty"):
        publish(tmp_path, contract.model_copy(update={"owner": "somebody else"}), model)
    assert (tmp_path / "iris/1/contract.json").read_bytes() == before


def test_an_artifact_that_a_server_would_refuse_is_not_published(
    tmp_path: Path, contract: Contract, model: bytes
) -> None:
    with pytest.raises(StoreError, match=r"a server would refuse it[^$]*sha256 expected"):
        publish(tmp_path / "store", contract, model + b"\0")
    assert not (tmp_path / "store").exists()


# Publishes a version, and stops where the test wants it to until it gets a line.
PUBLISHER = """
import sys
from pathlib import Path
from artifact.contract import read_contract
from artifact import directory_store as store

where, trained, target, version = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
lock, write, move = store._lock, store.write, store._move

def stop():
    print("stopped", flush=True)
    sys.stdin.readline()

def stop_between_the_files(path, content):
    if path.name == "contract.json":
        stop()
    write(path, content)

if where == "before the lock":
    store._lock = lambda descriptor: (stop(), lock(descriptor))[1]
elif where == "between the files":
    store.write = stop_between_the_files
elif where == "before the rename":
    store._move = lambda *paths: (stop(), move(*paths))
elif where == "after the rename":
    store._move = lambda *paths: (move(*paths), stop())
contract = read_contract(trained).model_copy(update={"version": version})
store.publish(target, contract, (trained / "model.onnx").read_bytes())
"""


@contextmanager
def publisher(
    where: str, trained: Path, store: Path, version: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process that publishes, once it has stopped where it should."""
    with subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, where, str(trained), str(store), version],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"stopped\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("where", ["between the files", "before the rename", "after the rename"])
def test_a_killed_training_leaves_a_whole_version_or_none(
    where: str, tmp_path: Path, trained: Path, contract: Contract, model: bytes
) -> None:
    """SIGKILL cannot be caught: what is on disk at any moment must do."""
    with publisher(where, trained, tmp_path, "1") as stopped:
        stopped.kill()
    visible = [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")]
    if where == "after the rename":
        assert differences(read_contract(tmp_path / "iris" / "1"), tmp_path / "iris" / "1") == []
    else:
        assert visible == []
        assert [path.name[:9] for path in tmp_path.iterdir()] == [".staging-"]
        publish(tmp_path, contract, model)
    publish(tmp_path, as_version(contract, "2"), model)
    assert [path.name for path in tmp_path.iterdir()] == ["iris"]
    assert sorted(path.name for path in (tmp_path / "iris").iterdir()) == ["1", "2"]


def test_an_interrupted_training_leaves_nothing(
    tmp_path: Path, contract: Contract, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("artifact.directory_store._move", interrupt)
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path / "deep" / "store", contract, model)
    assert everything(tmp_path) == []


def test_publishing_sweeps_nothing_of_a_publisher_at_work(tmp_path: Path, trained: Path) -> None:
    """Two trainings at a time must both end with their version in the store."""
    with (
        publisher("before the rename", trained, tmp_path, "1") as one,
        publisher("before the lock", trained, tmp_path, "2") as two,
    ):
        for each in (two, one):
            assert each.stdin
            each.stdin.write(b"\n")
            each.stdin.flush()
        assert one.wait(30) == 0
        assert two.wait(30) == 0
    assert everything(tmp_path)[0] == "iris"
    assert sorted(path.name for path in (tmp_path / "iris").iterdir()) == ["1", "2"]


def test_an_alias_is_moved_from_one_version_to_another(
    tmp_path: Path, contract: Contract, model: bytes
) -> None:
    for version in ("1", "2"):
        publish(tmp_path, as_version(contract, version), model)
        alias = set_alias(tmp_path, "iris", "stable", version)
        assert alias == tmp_path / "iris" / "aliases" / "stable"
        assert alias.read_text() == f"{version}\n"
    assert everything(alias.parent) == ["stable"]


def test_an_alias_of_a_version_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="iris/3: expected a version for stable, got none"):
        set_alias(tmp_path, "iris", "stable", "3")
    assert everything(tmp_path) == []


def test_a_store_is_a_path_or_a_file_uri() -> None:
    assert store_directory("models") == Path("models")
    assert store_directory("file:///a%20b/c") == Path("/a b/c")
    assert store_directory("file://localhost/a") == Path("/a")
    for other in ("ftp://host/models", "https://host/models", "file://host/a"):
        with pytest.raises(StoreError, match="expected a directory, file:///directory, s3://"):
            store_directory(other)
