"""Which images and models are released together, with real images and their record."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifact.verify import sha256_of
from release.compatibility.record import RECORD, Compatibility
from release.images.build import ReleaseImages
from release.images.docker import docker
from release.kubernetes.resolve import Options, PairError, pair
from tests.fakes import unavailable

pytestmark = [pytest.mark.xdist_group("docker"), pytest.mark.usefixtures("engine")]

REGISTRY = f"127.0.0.1/pair-{os.getpid()}"


@pytest.fixture
def release(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ReleaseImages]:
    """A model, and an image of the name that its server has."""
    if shutil.which("kubectl") is None:
        unavailable("needs kubectl")
    monkeypatch.setenv("KUBECONFIG", "/dev/null")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(store, tmp_path / "models")
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    made = ReleaseImages.of(Path("models/iris/1"), "models", "1", REGISTRY)
    docker("build", "-t", made.model_load, "-t", made.model_image, str(tmp_path))
    yield made
    docker("rmi", made.model_load, made.model_image)


def record(release: ReleaseImages, path: Path, *, supported: bool) -> None:
    """Write what `make compatibility` would."""
    image = docker("image", "inspect", "--format={{.Id}}", release.model_load).strip()
    contract_sha256 = sha256_of(release.artifact / "contract.json")
    at = "2026-11-24T00:00:00Z"
    cell = {
        "artifact": "iris/1",
        "contract_sha256": contract_sha256,
        "server": image,
        "supported": supported,
        "reason": None,
        "tried_at": at,
    }
    server: dict[str, object] = {
        "name": release.model_load,
        "kind": "image",
        "id": image,
        "images": [{"id": image, "names": [], "digests": [], "revision": None}],
        "software": None,
    }
    found = {
        "made_by": "a test",
        "made_at": at,
        "store": "models",
        "notes": [],
        "servers": [server],
        "artifacts": [],
        "cells": [cell],
    }
    path.write_text(Compatibility.model_validate_json(json.dumps(found)).model_dump_json())


def options(tmp_path: Path, source: str | None = None, load_image: str = "true") -> Options:
    return Options("inference", source, load_image, tmp_path / RECORD)


def test_a_pair_that_was_seen_to_load_is_released(release: ReleaseImages, tmp_path: Path) -> None:
    record(release, tmp_path / RECORD, supported=True)

    made = pair(release, "model_load", "models", options(tmp_path))

    assert made.image == release.model_load
    assert made.source == "volume"
    assert made.contract_sha256 == sha256_of(Path("models/iris/1/contract.json"))


@pytest.mark.parametrize(
    ("supported", "said"),
    [(None, "nobody has seen that server load that model"), (False, "refuses iris/1")],
)
def test_any_other_is_refused(
    release: ReleaseImages, tmp_path: Path, *, supported: bool | None, said: str
) -> None:
    if supported is not None:
        record(release, tmp_path / RECORD, supported=supported)

    with pytest.raises(PairError, match=said):
        pair(release, "model_load", "models", options(tmp_path))


@pytest.mark.parametrize(
    ("named", "source", "taken"),
    [
        ("models", None, ("volume", None)),
        ("s3://bucket/models", None, ("bucket", "s3://bucket/models")),
        ("models", "image_volume", ("image_volume", f"{REGISTRY}/model:iris-1")),
        ("s3://bucket/models", "image_volume", ("image_volume", f"{REGISTRY}/model:iris-1")),
    ],
)
def test_the_source_is_the_store_unless_it_is_named(
    release: ReleaseImages,
    tmp_path: Path,
    named: str,
    source: str | None,
    taken: tuple[str, str | None],
) -> None:
    record(release, tmp_path / RECORD, supported=True)

    made = pair(release, "model_load", named, options(tmp_path, source))

    assert (made.source, made.where) == taken


@pytest.mark.parametrize(
    ("named", "source"), [("models", "bucket"), ("s3://b/m", "volume"), ("models", "cloud")]
)
def test_a_source_that_has_no_model_is_refused(
    release: ReleaseImages, tmp_path: Path, named: str, source: str
) -> None:
    record(release, tmp_path / RECORD, supported=True)

    with pytest.raises(PairError, match="SOURCE"):
        pair(release, "model_load", named, options(tmp_path, source))


@pytest.mark.parametrize("load_image", ["false", "/nowhere/load"])
def test_an_image_that_does_not_reach_the_cluster_is_no_release(
    release: ReleaseImages, tmp_path: Path, load_image: str
) -> None:
    record(release, tmp_path / RECORD, supported=True)

    with pytest.raises(PairError, match="LOAD_IMAGE"):
        pair(release, "model_load", "models", options(tmp_path, load_image=load_image))
