"""Which images and models may be released together, with real images and a compatibility record."""

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
from release.kubernetes.errors import ReleaseError
from release.kubernetes.resolve import Options, resolve_release
from tests.fakes import unavailable

pytestmark = [pytest.mark.xdist_group("docker"), pytest.mark.usefixtures("engine")]

REGISTRY = f"127.0.0.1/resolve-{os.getpid()}"


@pytest.fixture
def release(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ReleaseImages]:
    """A model, and images with the names of its server and its own image."""
    if shutil.which("kubectl") is None:
        unavailable("needs kubectl")
    monkeypatch.setenv("KUBECONFIG", "/dev/null")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(store, tmp_path / "models")
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    built = ReleaseImages.of(Path("models/iris/1"), "models", "1", REGISTRY)
    docker("build", "-t", built.model_load, "-t", built.model_image, str(tmp_path))
    yield built
    docker("rmi", built.model_load, built.model_image)


def record(release: ReleaseImages, path: Path, *, supported: bool) -> None:
    """Write the file that `make compatibility` writes."""
    image = docker("image", "inspect", "--format={{.Id}}", release.model_load).strip()
    contract_sha256 = sha256_of(release.artifact / "contract.json")
    time = "2026-11-24T00:00:00Z"
    cell = {
        "artifact": "iris/1",
        "contract_sha256": contract_sha256,
        "server": image,
        "supported": supported,
        "reason": None,
        "tried_at": time,
    }
    server: dict[str, object] = {
        "name": release.model_load,
        "kind": "image",
        "id": image,
        "images": [{"id": image, "names": [], "digests": [], "revision": None}],
        "software": None,
    }
    content = {
        "made_by": "a test",
        "made_at": time,
        "store": "models",
        "notes": [],
        "servers": [server],
        "artifacts": [],
        "cells": [cell],
    }
    path.write_text(Compatibility.model_validate_json(json.dumps(content)).model_dump_json())


def options(tmp_path: Path, source: str | None = None, load_image: str = "true") -> Options:
    return Options("inference", source, load_image, tmp_path / RECORD, memory="512Mi")


def test_a_compatible_image_and_model_are_released(release: ReleaseImages, tmp_path: Path) -> None:
    record(release, tmp_path / RECORD, supported=True)

    manifests = resolve_release(release, "model_load", "models", options(tmp_path))

    assert manifests.image == release.model_load
    assert manifests.source == "volume"
    assert manifests.memory == "512Mi"
    assert manifests.contract_sha256 == sha256_of(Path("models/iris/1/contract.json"))


@pytest.mark.parametrize(
    ("supported", "message"),
    [(None, "was not tested with iris/1"), (False, "cannot serve iris/1")],
)
def test_untested_and_incompatible_images_are_rejected(
    release: ReleaseImages, tmp_path: Path, *, supported: bool | None, message: str
) -> None:
    if supported is not None:
        record(release, tmp_path / RECORD, supported=supported)

    with pytest.raises(ReleaseError, match=message):
        resolve_release(release, "model_load", "models", options(tmp_path))


@pytest.mark.parametrize(
    ("store_uri", "source", "expected"),
    [
        ("models", None, ("volume", None)),
        ("s3://bucket/models", None, ("bucket", "s3://bucket/models")),
        ("models", "image_volume", ("image_volume", f"{REGISTRY}/model:iris-1")),
        ("s3://bucket/models", "image_volume", ("image_volume", f"{REGISTRY}/model:iris-1")),
    ],
)
def test_the_default_source_is_the_store(
    release: ReleaseImages,
    tmp_path: Path,
    store_uri: str,
    source: str | None,
    expected: tuple[str, str | None],
) -> None:
    record(release, tmp_path / RECORD, supported=True)

    manifests = resolve_release(release, "model_load", store_uri, options(tmp_path, source))

    assert (manifests.source, manifests.location) == expected


@pytest.mark.parametrize(
    ("store_uri", "source"), [("models", "bucket"), ("s3://b/m", "volume"), ("models", "cloud")]
)
def test_a_source_that_does_not_match_the_store_is_rejected(
    release: ReleaseImages, tmp_path: Path, store_uri: str, source: str
) -> None:
    record(release, tmp_path / RECORD, supported=True)

    with pytest.raises(ReleaseError, match=f"SOURCE.*{source}"):
        resolve_release(release, "model_load", store_uri, options(tmp_path, source))


@pytest.mark.parametrize("load_image", ["false", "/nowhere/load"])
def test_an_image_that_cannot_be_loaded_is_not_released(
    release: ReleaseImages, tmp_path: Path, load_image: str
) -> None:
    record(release, tmp_path / RECORD, supported=True)

    with pytest.raises(ReleaseError, match="LOAD_IMAGE"):
        resolve_release(release, "model_load", "models", options(tmp_path, load_image=load_image))
