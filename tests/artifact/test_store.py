"""Opening a model store: every form of its location leads to one class with the same methods."""

import os
import re
from pathlib import Path

import pytest

from artifact.bucket_store import BucketStore
from artifact.directory_store import DirectoryStore
from artifact.errors import StoreError
from artifact.reader import contract_in, versions_in
from artifact.redact import redact
from artifact.store import open_store
from artifact.uri import local_path


def forms_of(directory: Path) -> list[str]:
    """All ways to write the location of one directory."""
    escaped = directory.as_uri()
    return [
        str(directory),
        os.path.relpath(directory),
        escaped,
        escaped.replace("//", "//localhost"),
    ]


@pytest.mark.parametrize(
    ("location", "store"),
    [
        ("models", DirectoryStore(Path("models"))),
        (Path("/a b/c"), DirectoryStore(Path("/a b/c"))),
        ("file:///a%20b/c", DirectoryStore(Path("/a b/c"))),
        ("FILE://localhost/a", DirectoryStore(Path("/a"))),
        ("s3://bucket/models/", BucketStore("s3://bucket/models")),
        ("gs://bucket", BucketStore("gs://bucket")),
        ("az://container/models", BucketStore("az://container/models")),
    ],
)
def test_each_location_opens_its_store(location: str | Path, store: object) -> None:
    assert open_store(location) == store


@pytest.mark.parametrize(
    "location",
    ["ftp://host/models", "https://host/models", "file://host/a", "file://models", "file:///a?b"],
)
def test_a_location_that_cannot_be_written_is_rejected(location: str) -> None:
    """A CDN at https:// only serves reads."""
    expected = "STORE: expected a directory, file:///directory, s3://, gs:// or az://, got "
    with pytest.raises(StoreError, match=f"^{expected}{re.escape(redact(location))}$"):
        open_store(location)


def test_a_contract_is_read_through_every_form_of_the_location(store: Path, tmp_path: Path) -> None:
    spaced = tmp_path / "model store"
    spaced.symlink_to(store)
    contract = (store / "iris" / "1" / "contract.json").read_bytes()

    assert [contract_in(form, "iris", "1") for form in forms_of(spaced)] == [contract] * 4
    assert [contract_in(form, "iris", "2") for form in forms_of(spaced)] == [None] * 4


def test_versions_are_found_through_every_form_of_the_location(store: Path) -> None:
    found = [versions_in(local_path(form, "STORE")) for form in forms_of(store)]

    assert [len(versions) for versions in found] == [len(versions_in(store))] * 4
    assert len(versions_in(store)) > 1


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("ftp://host/models", "expected a path, file:// or one of s3://"),
        ("file://host/models", "expected a path or file:///path, got file://host/models"),
        ("s3://key:zq@bucket/models", "AWS_ACCESS_KEY_ID"),
    ],
)
def test_a_store_that_cannot_be_read_is_named_by_its_setting(location: str, reason: str) -> None:
    with pytest.raises(StoreError, match=r"^STORE: ") as error:
        contract_in(location, "iris", "1")

    assert reason in str(error.value)
    assert "zq" not in str(error.value)


def test_a_contract_that_cannot_be_opened_is_an_error_that_names_the_store(tmp_path: Path) -> None:
    (tmp_path / "iris" / "1" / "contract.json").mkdir(parents=True)

    with pytest.raises(StoreError, match=f"^STORE: {tmp_path}: .*Is a directory"):
        contract_in(str(tmp_path), "iris", "1")
