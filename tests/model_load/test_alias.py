"""Versions and aliases of a local store."""

import shutil
from pathlib import Path

import pytest

from artifact.contract import read_contract
from artifact.directory_store import DirectoryStore
from artifact.errors import StoreError
from model_load.alias import local_artifact


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


def test_a_version_is_opened_in_place(two_versions: Path) -> None:
    """A local artifact is not copied."""
    assert local_artifact(f"{two_versions}/iris/1") == two_versions / "iris" / "1"
    assert local_artifact(f"file://{two_versions}/iris/1") == two_versions / "iris" / "1"


def test_an_alias_names_a_version(two_versions: Path) -> None:
    assert local_artifact(f"{two_versions}/iris@stable") == two_versions / "iris" / "2"
    assert local_artifact(f"file://{two_versions}/iris@stable") == two_versions / "iris" / "2"


def test_a_copy_under_another_version_is_rejected(two_versions: Path) -> None:
    """A server that reports one version while its URI names another cannot be rolled back."""
    shutil.copytree(two_versions / "iris" / "1", two_versions / "iris" / "3")

    with pytest.raises(StoreError, match="expected the artifact iris/3, got iris/1"):
        local_artifact(f"{two_versions}/iris/3")


def test_a_file_uri_may_be_percent_encoded(two_versions: Path) -> None:
    spaced = two_versions.parent / "with a space"
    two_versions.rename(spaced)

    assert (
        local_artifact(f"file://{spaced.parent}/with%20a%20space/iris@stable").parent.parent
        == spaced
    )


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("{store}/iris@canary", "no such alias"),
        ("{store}/iris@", "expected <store>/<name>/<version> or"),
        ("ftp://host/iris/1", "expected a path or file:///path, got ftp://host/iris/1"),
        ("file://elsewhere/iris/1", "expected a path or file:///path"),
    ],
)
def test_an_invalid_uri_is_named(two_versions: Path, uri: str, message: str) -> None:
    uri = uri.format(store=two_versions)

    with pytest.raises(StoreError, match=r"^MODEL_URI: ") as error:
        local_artifact(uri)

    assert uri in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("content", [b"../../etc\n", b"", b"\xff", b"aliases"])
def test_an_alias_cannot_name_a_path_outside_of_the_store(
    two_versions: Path, content: bytes
) -> None:
    (two_versions / "iris" / "aliases" / "stable").write_bytes(content)

    with pytest.raises(StoreError):
        local_artifact(f"{two_versions}/iris@stable")
