"""`make compatibility`: artifacts are loaded with two versions of onnxruntime, and in images."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from artifact.contract import CONTRACT_FILE, MODEL_FILE
from artifact.uri import is_bucket
from artifact.verify import sha256_of
from release.compatibility.matrix import PAGE, Matrix
from release.compatibility.record import (
    RECORD,
    Compatibility,
    CompatibilityError,
    Server,
    supported,
)
from release.compatibility.servers import LockError, LockServer, Verification, grouped
from release.images.docker import docker
from tests.fakes import unavailable
from training.import_onnx import make_contract

# Only one process at a time may create and remove images.
pytestmark = pytest.mark.xdist_group("docker")

ROOT = Path(__file__).parent.parent.parent
CHECK_SCRIPT = ROOT / "release" / "compatibility" / "check_script.py"
OLDER = "1.22.1"
NEWER = re.findall(
    r"^onnxruntime==(\S+)", (ROOT / "serving" / "requirements.txt").read_text(), re.MULTILINE
)[0]
# The packages that the verification imports: installing the whole lock would take longer.
IMPORTED = (
    "annotated-types", "numpy", "onnxruntime", "pydantic", "pydantic-core", "typing-extensions",
    "typing-inspection",
)  # fmt: skip


def publish(store: Path, version: str, opset: int, ir_version: int) -> Path:
    """Publish an identity model with this opset and IR version: x float32[N,2] -> y."""
    shape: list[str | int | None] = ["N", 2]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )
    file = store.parent / f"{version}.onnx"
    file.write_bytes(model.SerializeToString())
    return Path(
        make_contract(onnx_file=file, store=store, name="same", version=version, purpose="a test")
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an old model, a model with a new opset, and a model with a new IR version."""
    store = tmp_path_factory.mktemp("compatibility") / "models"
    publish(store, "1", 17, 8)
    publish(store, "9", 23, 10)
    publish(store, "10", 22, 11)
    (store / "same" / "aliases").mkdir()
    (store / "same" / "aliases" / "stable").write_text("1\n")
    for unfinished in (".staging-1/1", "same/.staging-2", "same/11"):
        (store / unfinished).mkdir(parents=True)
    for hidden in (".staging-1/1", "same/.staging-2"):
        shutil.copy(store / "same" / "1" / CONTRACT_FILE, store / hidden / CONTRACT_FILE)
    # With a strict umask, other users cannot read the store.
    for path in (store, *store.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return store


def lock(path: Path, onnxruntime: str) -> Path:
    """Write the part of the server's lock that the verification needs, with this onnxruntime."""
    pins = re.findall(
        r"^([a-z0-9-]+)==(\S+)", (ROOT / "serving" / "requirements.txt").read_text(), re.MULTILINE
    )
    versions = {**dict(pins), "onnxruntime": onnxruntime}
    path.write_text("".join(f"{name}=={versions[name]}\n" for name in IMPORTED))
    return path


@pytest.fixture(scope="module")
def record(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Compatibility:
    """The record for a lock with an older onnxruntime and a lock with the current version."""
    directory = tmp_path_factory.mktemp("locks")
    locks = [lock(directory / f"{version}.txt", version) for version in (OLDER, NEWER)]
    try:
        # No image has this prefix, so only the locks are servers.
        return Compatibility.check(str(models), locks, "127.0.0.1/none", directory / "made")
    except LockError as error:
        if "No matching distribution" in str(error):
            unavailable(f"needs onnxruntime {OLDER} from a package index: {error}")
        raise


def verdicts(record: Compatibility) -> dict[tuple[str, str], tuple[bool | None, str | None]]:
    """Return the results by artifact and by the onnxruntime of the server."""
    versions = {
        server.id: server.software.onnxruntime for server in record.servers if server.software
    }
    return {
        (cell.artifact, versions[cell.server]): (cell.supported, cell.reason)
        for cell in record.cells
    }


def test_an_older_onnxruntime_rejects_models_that_only_a_newer_version_loads(
    record: Compatibility,
) -> None:
    """The user learns it before the model is deployed to a server that cannot load it."""
    opset = f"model.onnx: opset ai.onnx 23, onnxruntime {OLDER} loads up to 22"
    ir_version = f"model.onnx: IR version 11, onnxruntime {OLDER} loads up to 10"

    assert verdicts(record) == {
        ("same/1", OLDER): (True, None),
        ("same/9", OLDER): (False, opset),
        ("same/10", OLDER): (False, ir_version),
        ("same/1", NEWER): (True, None),
        ("same/9", NEWER): (True, None),
        ("same/10", NEWER): (True, None),
    }


def test_the_record_has_the_facts_of_servers_and_contracts(
    record: Compatibility, models: Path
) -> None:
    """Versions come from the running servers, opsets from the contracts, never from labels."""
    assert [server.software and server.software.numpy for server in record.servers] == [
        np.__version__
    ] * 2
    assert [artifact.path for artifact in record.artifacts] == ["same/1", "same/9", "same/10"]
    assert [(artifact.opsets, artifact.ir_version) for artifact in record.artifacts] == [
        ({"": 17}, 8),
        ({"": 23}, 10),
        ({"": 22}, 11),
    ]
    assert record.artifacts[0].contract_sha256 == sha256_of(models / "same" / "1" / CONTRACT_FILE)
    assert record.made_by.startswith(f"make compatibility STORE={models} LOCK='")
    assert all(cell.tried_at <= record.made_at for cell in record.cells)
    assert len(record.notes) == 1
    assert record.notes[0].startswith("No image was checked: ")


def test_the_record_is_written_as_a_page_and_as_json(
    record: Compatibility, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = Matrix(record)

    file, page = matrix.write(tmp_path / "docs")
    matrix.show()

    assert {file.name, page.name} == {RECORD, PAGE}
    assert sorted(path.name for path in file.parent.iterdir()) == sorted([RECORD, PAGE])
    assert Compatibility.read(file) == record
    lines = page.read_text(encoding="utf-8").splitlines()
    assert lines[2].startswith(f"Made by `{record.made_by}` on {record.made_at:%Y-%m-%d}")
    assert "| same/9 | 23 | 10 | rejected (1) | supported |" in lines
    assert "| same/10 | 22 | 11 | rejected (2) | supported |" in lines
    assert f"1. same/9: `model.onnx: opset ai.onnx 23, onnxruntime {OLDER} loads up to 22`" in lines
    shown = capsys.readouterr().out
    assert "rejected (1)" in shown
    assert f"1. same/9: model.onnx: opset ai.onnx 23, onnxruntime {OLDER} loads up to 22" in shown


def test_an_environment_is_created_once(record: Compatibility, tmp_path: Path) -> None:
    """Later checks take seconds. An incomplete environment is created again."""
    del record
    empty = tmp_path / "lock.txt"
    empty.write_text("# nothing\n")
    server = LockServer.of(empty, tmp_path / "made")
    (server.python.parent.parent / "mark").touch()

    assert LockServer.of(empty, tmp_path / "made") == server
    assert (server.python.parent.parent / "mark").exists()
    (server.python.parent.parent / "complete").unlink()
    assert LockServer.of(empty, tmp_path / "made") == server
    assert not (server.python.parent.parent / "mark").exists()


def test_a_server_that_does_not_start_has_unknown_results(models: Path, tmp_path: Path) -> None:
    """An unknown result must not be shown as a rejection."""
    empty = tmp_path / "lock.txt"
    empty.write_text("# nothing\n")

    result = Compatibility.check(str(models), [empty], "127.0.0.1/none", tmp_path / "made")

    assert {cell.supported for cell in result.cells} == {None}
    assert all("onnxruntime" in str(cell.reason) for cell in result.cells)
    assert "not checked (1)" in Matrix(result).page()


def test_an_artifact_that_kills_the_process_does_not_hide_other_results(tmp_path: Path) -> None:
    """Some model files crash onnxruntime with a signal."""
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "verify.py").write_text(
        "import os, sys, time\n"
        "how = sys.argv[1].rpartition('/')[2]\n"
        "if how == 'killed': os.kill(os.getpid(), 11)\n"
        "if how == 'slow': time.sleep(60)\n"
        "if how == 'broken': raise ImportError('no such library')\n"
        "if how == 'wrong': sys.exit('ContractMismatch: x:\\n  - one\\n  - two\\nTrain again.')\n"
    )
    artifacts = [f"a/{how}" for how in ("killed", "slow", "broken", "wrong", "right")]

    result = subprocess.run(
        [sys.executable, CHECK_SCRIPT, "1", str(tmp_path), *artifacts],
        capture_output=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )

    results = json.loads(result.stdout)["results"]
    assert [Verification.model_validate(results[name]).reason for name in artifacts] == [
        "killed by signal 11",
        "no result within 1 s",
        "ImportError: no such library",
        "one; two",
        None,
    ]


def image(title: str, layers: str, created: int, *, name: bool = True) -> dict[str, object]:
    """Return a record of `docker image inspect` for an image with these layers, a letter each."""
    return {
        "Id": f"sha256:{title}-{layers}-{created}",
        "Created": str(created),
        "RepoTags": [f"{title}:{layers}"] if name else [],
        "RepoDigests": None,
        "RootFS": {"Layers": list(layers)},
        "Config": {"Labels": {"org.opencontainers.image.title": title}},
    }


def test_images_with_the_same_server_are_grouped() -> None:
    """A hundred images with different models are one column. Images without a name are ignored.

    The letters are: base, removal of pip (dated, so never equal), libraries, server, working
    directory, mode, model.
    """
    servers = grouped(
        [
            image("model_in_image", "bmlsfIx", 5),
            image("model_in_image", "bnlsfIy", 4),
            image("model_in_image", "bmltfIx", 3),
            image("model_load", "bolsfL", 2),
            image("model_load", "bmLsfL", 6, name=False),
            image("model", "x", 7),
        ]
    )

    assert [[item.names[0] for item in server.images] for server in servers] == [
        ["model_load:bolsfL", "model_in_image:bmlsfIx", "model_in_image:bnlsfIy"],
        ["model_in_image:bmltfIx"],
    ]


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("s3://bucket/models", r"STORE: expected a directory, got s3://.* pull --to "),
        ("nowhere", "STORE: expected a directory, got none at nowhere"),
        (".", r"STORE: expected <name>/<version>/contract\.json .* make train"),
    ],
)
def test_a_store_without_artifacts_is_explained(
    store: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(CompatibilityError, match=message):
        Compatibility.check(store)


@pytest.mark.parametrize("program", ["nowhere/docker", "true"])
def test_without_any_server_the_error_names_the_commands_to_get_one(
    models: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing Docker, or a Docker without images, must not look like a result."""
    monkeypatch.setenv("DOCKER", program)

    with pytest.raises(CompatibilityError, match=r"make build.*LOCK=serving.* No image was"):
        Compatibility.check(str(models))


@pytest.mark.parametrize("store", ["https://user:zq@cdn/models", "models"])
def test_an_error_shows_no_credentials(store: str, models: Path, tmp_path: Path) -> None:
    """Neither the credentials of STORE nor those in the error output of docker."""
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho 'get https://user:zq@proxy/v2: denied' >&2\nexit 1\n")
    docker.chmod(0o755)

    process = subprocess.run(
        [sys.executable, "-m", "release", "compatibility", f"--store={store}", f"--to={tmp_path}"],
        cwd=models.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DOCKER": str(docker)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert process.returncode == 1
    expected = "got https://…@cdn/models." if is_bucket(store) else "get https://…@proxy/v2: denied"
    assert expected in process.stderr
    assert "zq" not in process.stdout + process.stderr


def test_a_lock_that_cannot_be_installed_is_explained(models: Path, tmp_path: Path) -> None:
    impossible = tmp_path / "impossible.txt"
    impossible.write_text("no-such-package @ file:///nowhere-1.0-py3-none-any.whl\n")
    for path, message in (
        (tmp_path / "none.txt", "expected a lock file: No such file"),
        (impossible, r"does not install on Python 3\.\d+\.\d+: .*nowhere.*\.whl"),
    ):
        with pytest.raises(LockError, match=message):
            Compatibility.check(str(models), [path], "127.0.0.1/none", tmp_path / "made")


def test_a_release_is_found_in_the_record(record: Compatibility, tmp_path: Path) -> None:
    """A release is an image's id or digest and the contract's sha256."""
    file = tmp_path / RECORD
    old, opset, _ = record.artifacts
    images = grouped([image("model_load", "abL", 1)])[0].images
    pulled = images[0].model_copy(update={"digests": ("registry/model_load@sha256:d",)})
    servers = [
        Server(**{**dict(server), "images": (pulled,)}) if index == 0 else server
        for index, server in enumerate(record.servers)
    ]
    assert supported(pulled.id, old.contract_sha256, file) is None

    Matrix(record.model_copy(update={"servers": tuple(servers)})).write(tmp_path)

    for reference in (pulled.id, "sha256:d", "registry/model_load@sha256:d"):
        assert supported(reference, old.contract_sha256, file) is True
        assert supported(reference, opset.contract_sha256, file) is False
        assert supported(reference, "another", file) is None
    assert supported("another", old.contract_sha256, file) is None
    file.write_text('{"cells": []}')
    with pytest.raises(CompatibilityError, match="Run it again"):
        supported(pulled.id, old.contract_sha256, file)


@pytest.fixture(scope="module")
def registry(engine: None, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Build both images from this repository; return the prefix of their names."""
    del engine
    context = tmp_path_factory.mktemp("context")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("artifact", "serving", "model_in_image", "model_load"):
        shutil.copytree(ROOT / name, context / name, ignore=ignored)
    for name in (".dockerignore", "build_layers.sh"):
        shutil.copy(ROOT / name, context)
    shutil.copytree(models / "same" / "1", context / "models" / "same" / "1")
    prefix = f"127.0.0.1/compat-{os.getpid()}"
    built = []
    try:
        for mode in ("model_load", "model_in_image"):
            options = ["-t", f"{prefix}/{mode}:test", "--build-arg=MODEL=models/same/1"]
            docker("build", "-q", *options, "-f", str(ROOT / f"Dockerfile.{mode}"), str(context))
            built.append(f"{prefix}/{mode}:test")
        yield prefix
    finally:
        docker("rmi", *built)


def test_images_with_and_without_a_model_are_one_server(
    registry: str, models: Path, tmp_path: Path
) -> None:
    """The check runs the deployed image; the images of both modes contain the same server."""
    store = tmp_path / "models"
    shutil.copytree(models, store)
    with (store / "same" / "9" / MODEL_FILE).open("ab") as file:
        file.write(b"more")

    result = Compatibility.check(str(store), registry=registry)

    (server,) = result.servers
    assert server.name == f"{registry}/model_load:test"
    assert server.software is not None
    assert server.software.onnxruntime == NEWER
    reasons = {cell.artifact: cell.reason for cell in result.cells}
    assert reasons["same/1"] is None
    assert reasons["same/10"] is None
    assert re.fullmatch(r"model\.onnx: expected .* bytes, .*; .*sha256.*", str(reasons["same/9"]))
    record, page = Matrix(result).write(tmp_path)
    assert "| same/9 | 23 | 10 | rejected (1) |" in page.read_text()
    for mode, artifact in itertools.product(("model_load", "model_in_image"), result.artifacts):
        name = f"{registry}/{mode}:test"
        image_id = docker("image", "inspect", "--format={{.Id}}", name).strip()
        expected = artifact.version != "9"
        assert supported(image_id, artifact.contract_sha256, record) is expected
