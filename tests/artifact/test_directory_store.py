"""Publishing into a directory: all or nothing, also if the publisher is killed."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from artifact.contract import Contract, read_contract
from artifact.directory_store import DirectoryStore
from artifact.errors import StoreError
from artifact.verify import differences
from training.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact to publish again into other stores."""
    return Path(train(dataset="iris", version="1", store=tmp_path_factory.mktemp("trained")))


@pytest.fixture
def contract(trained: Path) -> Contract:
    return read_contract(trained)


@pytest.fixture
def model(trained: Path) -> bytes:
    return (trained / "model.onnx").read_bytes()


def as_version(contract: Contract, version: str) -> Contract:
    return contract.model_copy(update={"version": version})


def all_paths(store: Path) -> list[str]:
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
    """A container runs as another user than the training, whose umask may be 077."""
    path = tmp_path / "deep" / "store"
    store = DirectoryStore(path)
    store.publish(contract, model)
    store.publish(as_version(contract, "2"), model)
    store.set_alias("iris", "stable", "1")
    for entry in [tmp_path / "deep", path, *path.rglob("*")]:
        expected = 0o755 if entry.is_dir() else 0o644
        assert stat.S_IMODE(entry.stat().st_mode) == expected, entry
    assert all_paths(path) == [
        "iris", "iris/1", "iris/1/contract.json", "iris/1/model.onnx",
        "iris/2", "iris/2/contract.json", "iris/2/model.onnx",
        "iris/aliases", "iris/aliases/stable",
    ]  # fmt: skip


def test_the_published_files_are_identical_to_the_trained_files(
    tmp_path: Path, trained: Path, contract: Contract, model: bytes
) -> None:
    path = Path(DirectoryStore(tmp_path).publish(contract, model))
    for name in ("model.onnx", "contract.json"):
        assert (path / name).read_bytes() == (trained / name).read_bytes()


def test_an_existing_version_is_never_overwritten(
    tmp_path: Path, contract: Contract, model: bytes
) -> None:
    store = DirectoryStore(tmp_path)
    store.publish(contract, model)
    other = contract.model_copy(update={"owner": "somebody else"})
    with pytest.raises(StoreError, match="this version exists"):
        store.publish(other, model)
    assert read_contract(tmp_path / "iris" / "1").owner == contract.owner


def test_a_version_that_appears_during_the_publication_is_not_overwritten(
    tmp_path: Path, contract: Contract, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where directories cannot be locked (NFS), two trainings may both find the name free."""
    store = DirectoryStore(tmp_path)
    store.publish(contract, model)
    before = (tmp_path / "iris/1/contract.json").read_bytes()
    monkeypatch.setattr(DirectoryStore, "reject_existing", lambda *_: None)
    with pytest.raises(StoreError, match="cannot be published, Directory not empty"):
        store.publish(contract.model_copy(update={"owner": "somebody else"}), model)
    assert (tmp_path / "iris/1/contract.json").read_bytes() == before


def test_an_artifact_that_servers_would_reject_is_not_published(
    tmp_path: Path, contract: Contract, model: bytes
) -> None:
    with pytest.raises(StoreError, match=r"servers would reject it[^$]*sha256 expected"):
        DirectoryStore(tmp_path / "store").publish(contract, model + b"\0")
    assert not (tmp_path / "store").exists()


# Publishes a version; at the step that the test names it prints a line and waits for one.
PUBLISHER = """
import sys
from pathlib import Path
from artifact.contract import read_contract
from artifact import directory_store as module

step, trained, target, version = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
lock, write, move = module._lock, module._write, module._move

def stop():
    print("stopped", flush=True)
    sys.stdin.readline()

def stop_between_the_files(path, content):
    if path.name == "contract.json":
        stop()
    write(path, content)

if step == "before the lock":
    module._lock = lambda descriptor: (stop(), lock(descriptor))[1]
elif step == "between the files":
    module._write = stop_between_the_files
elif step == "before the rename":
    module._move = lambda *paths: (stop(), move(*paths))
elif step == "after the rename":
    module._move = lambda *paths: (move(*paths), stop())
contract = read_contract(trained).model_copy(update={"version": version})
module.DirectoryStore(target).publish(contract, (trained / "model.onnx").read_bytes())
"""


@contextmanager
def publisher(
    step: str, trained: Path, store: Path, version: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a publishing process that has stopped at a step."""
    with subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, step, str(trained), str(store), version],
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


@pytest.mark.parametrize("step", ["between the files", "before the rename", "after the rename"])
def test_a_killed_training_leaves_a_complete_version_or_none(
    step: str, tmp_path: Path, trained: Path, contract: Contract, model: bytes
) -> None:
    """SIGKILL cannot be caught: the files on disk must be valid at every moment."""
    with publisher(step, trained, tmp_path, "1") as stopped:
        stopped.kill()
    store = DirectoryStore(tmp_path)
    visible = [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")]
    if step == "after the rename":
        assert differences(read_contract(tmp_path / "iris" / "1"), tmp_path / "iris" / "1") == []
    else:
        assert visible == []
        assert [path.name[:9] for path in tmp_path.iterdir()] == [".staging-"]
        store.publish(contract, model)
    store.publish(as_version(contract, "2"), model)
    assert [path.name for path in tmp_path.iterdir()] == ["iris"]
    assert sorted(path.name for path in (tmp_path / "iris").iterdir()) == ["1", "2"]


def test_an_interrupted_training_leaves_nothing(
    tmp_path: Path, contract: Contract, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("artifact.directory_store._move", interrupt)
    with pytest.raises(KeyboardInterrupt):
        DirectoryStore(tmp_path / "deep" / "store").publish(contract, model)
    assert all_paths(tmp_path) == []


def test_publishing_removes_no_files_of_another_active_publisher(
    tmp_path: Path, trained: Path
) -> None:
    """Two trainings at the same time must both end with their version in the store."""
    with (
        publisher("before the rename", trained, tmp_path, "1") as first,
        publisher("before the lock", trained, tmp_path, "2") as second,
    ):
        for process in (second, first):
            assert process.stdin
            process.stdin.write(b"\n")
            process.stdin.flush()
        assert first.wait(30) == 0
        assert second.wait(30) == 0
    assert all_paths(tmp_path)[0] == "iris"
    assert sorted(path.name for path in (tmp_path / "iris").iterdir()) == ["1", "2"]


def test_an_alias_moves_from_one_version_to_another(
    tmp_path: Path, contract: Contract, model: bytes
) -> None:
    store, alias = DirectoryStore(tmp_path), tmp_path / "iris" / "aliases" / "stable"
    for version in ("1", "2"):
        store.publish(as_version(contract, version), model)
        store.set_alias("iris", "stable", version)
        assert alias.read_text() == f"{version}\n"
    assert all_paths(alias.parent) == ["stable"]


def test_an_alias_of_a_missing_version_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="iris/3: expected a version for stable, got none"):
        DirectoryStore(tmp_path).set_alias("iris", "stable", "3")
    assert all_paths(tmp_path) == []
