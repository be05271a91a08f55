"""Publishing into buckets: all or nothing, once, with headers for caches."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from artifact.bucket_store import BucketStore
from artifact.contract import read_contract
from artifact.errors import StoreError
from tests.fakes import FAKES, FakeFileStore
from training.train import train

WRITABLE = ("s3", "gs", "az")


@pytest.fixture(scope="module", params=WRITABLE)
def started(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeFileStore]:
    """Each kind of bucket in turn."""
    with FAKES[request.param](tmp_path_factory.mktemp(request.param)) as fake:
        yield fake


@pytest.fixture
def bucket(started: FakeFileStore, monkeypatch: pytest.MonkeyPatch) -> FakeFileStore:
    """An empty bucket, with its endpoint and credentials in the environment."""
    for path in started.list():
        started.delete(path)
    for name, value in started.environment.items():
        monkeypatch.setenv(name, value)
    return started


def test_training_publishes_into_a_bucket(bucket: FakeFileStore, store: Path) -> None:
    """The same bytes as in a directory, and headers for a CDN in front of the bucket."""
    location = train(dataset="iris", version="1", store=bucket.uri, alias="stable")

    assert location == f"{bucket.uri}/iris/1"
    files = ["iris/1/contract.json", "iris/1/model.onnx", "iris/aliases/stable"]
    assert bucket.list() == sorted(files)
    for file in files[:2]:
        assert bucket.get(file) == (store / file).read_bytes()
        assert bucket.cache_control(file) == "public, max-age=31536000, immutable"
    assert bucket.get(files[2]) == b"1\n"
    assert bucket.cache_control(files[2]) == "no-cache"


def test_an_existing_version_is_rejected(bucket: FakeFileStore) -> None:
    train(dataset="iris", version="1", store=bucket.uri)
    before = bucket.get("iris/1/contract.json")

    with pytest.raises(StoreError, match="this version exists, and versions never change"):
        train(dataset="iris", version="1", store=bucket.uri, purpose="another")

    assert bucket.get("iris/1/contract.json") == before


def test_only_one_of_two_concurrent_publishers_succeeds(
    bucket: FakeFileStore, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both may check before either uploads: the upload itself must be conditional."""
    contract = read_contract(store / "iris" / "1")
    model = (store / "iris" / "1" / "model.onnx").read_bytes()
    BucketStore(bucket.uri).publish(contract, model)
    monkeypatch.setattr(BucketStore, "reject_existing", lambda *_: None)

    with pytest.raises(StoreError, match="this version exists"):
        BucketStore(bucket.uri).publish(contract.model_copy(update={"owner": "another"}), model)

    assert bucket.get("iris/1/contract.json") == contract.to_json().encode()


def test_a_killed_publication_can_be_completed(bucket: FakeFileStore, store: Path) -> None:
    """A model without a contract is not a version; the same training may complete it."""
    bucket.put("iris/1/model.onnx", (store / "iris" / "1" / "model.onnx").read_bytes())

    train(dataset="iris", version="1", store=bucket.uri)

    assert "iris/1/contract.json" in bucket.list()


def test_another_model_without_a_contract_is_not_overwritten(bucket: FakeFileStore) -> None:
    bucket.put("iris/1/model.onnx", b"of another training")

    with pytest.raises(StoreError, match="another model is there without a contract"):
        train(dataset="iris", version="1", store=bucket.uri)

    assert bucket.list() == ["iris/1/model.onnx"]


def test_an_alias_of_a_missing_version_is_rejected(bucket: FakeFileStore) -> None:
    with pytest.raises(StoreError, match="expected a version for stable, got none"):
        BucketStore(bucket.uri).set_alias("iris", "stable", "9")


def test_an_error_names_the_missing_bucket(bucket: FakeFileStore) -> None:
    uri = bucket.uri.replace("bucket/models", "nowhere/models")

    with pytest.raises(StoreError, match=r"STORE: .*nowhere/models/iris/1/model.onnx: .*Check"):
        train(dataset="iris", version="1", store=uri)
