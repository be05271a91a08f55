"""Where model_load finds its model: versions and aliases of a local store."""

import shutil
from pathlib import Path

import httpx
import pytest

from artifact.contract import read_contract
from artifact.directory_store import DirectoryStore
from artifact.errors import StoreError
from model_load.alias import local_artifact
from tests.servers import start


@pytest.fixture
def two_versions(store: Path, tmp_path: Path) -> Path:
    """A store with two versions and an alias for the second."""
    model = (store / "iris" / "1" / "model.onnx").read_bytes()
    contract = read_contract(store / "iris" / "1")
    for version in ("1", "2"):
        DirectoryStore(tmp_path).publish(contract.model_copy(update={"version": version}), model)
    (tmp_path / "iris" / "aliases").mkdir()
    (tmp_path / "iris" / "aliases" / "stable").write_text("2\n")
    return tmp_path


def located(uri: str) -> Path:
    return local_artifact(uri)


def test_a_version_is_opened_in_place(two_versions: Path) -> None:
    """A local path is not copied: nothing is gained by a second one."""
    assert located(f"{two_versions}/iris/1") == two_versions / "iris" / "1"
    assert located(f"file://{two_versions}/iris/1") == two_versions / "iris" / "1"


def test_an_alias_names_a_version(two_versions: Path) -> None:
    assert located(f"{two_versions}/iris@stable") == two_versions / "iris" / "2"
    assert located(f"file://{two_versions}/iris@stable") == two_versions / "iris" / "2"


def test_a_copy_under_another_version_is_refused(two_versions: Path) -> None:
    """A server that says one version while its URI says another cannot be rolled back."""
    shutil.copytree(two_versions / "iris" / "1", two_versions / "iris" / "3")

    with pytest.raises(StoreError, match="expected the artifact iris/3, got iris/1"):
        located(f"{two_versions}/iris/3")


def test_a_file_uri_may_be_escaped(two_versions: Path) -> None:
    spaced = two_versions.parent / "with a space"
    two_versions.rename(spaced)

    assert located(f"file://{spaced.parent}/with%20a%20space/iris@stable").parent.parent == spaced


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("{store}/iris@canary", "no such alias"),
        ("{store}/iris@", "expected <store>/<name>/<version> or"),
        ("ftp://host/iris/1", "expected a path or file:///path, got ftp://host/iris/1"),
        ("file://elsewhere/iris/1", "expected a path or file:///path"),
    ],
)
def test_a_uri_that_leads_nowhere_is_named(two_versions: Path, uri: str, said: str) -> None:
    uri = uri.format(store=two_versions)

    with pytest.raises(StoreError, match=r"^MODEL_URI: ") as refused:
        located(uri)

    assert uri in str(refused.value)
    assert said in str(refused.value)


@pytest.mark.parametrize("content", [b"../../etc\n", b"", b"\xff", b"aliases"])
def test_an_alias_cannot_lead_out_of_the_store(two_versions: Path, content: bytes) -> None:
    (two_versions / "iris" / "aliases" / "stable").write_bytes(content)

    with pytest.raises(StoreError):
        located(f"{two_versions}/iris@stable")


def test_one_server_serves_both_versions_of_an_algorithm_trained_twice(
    two_csv_versions: Path,
) -> None:
    """The chapter's reason for model load: the same server, new data, no new image."""
    answers = []
    for version in ("1", "2"):
        with start("model_load", two_csv_versions / "flowers" / version) as server:
            server.wait_until_ready()
            answer = httpx.post(f"{server.url}/predict", json={"data": [[5.1, 3.5, 1.4, 0.2]]})
            answers.append((answer.headers["model-version"], answer.json()["prediction"]))

    assert [version for version, _ in answers] == ["1", "2"]
    assert answers[0][1] != answers[1][1]
