"""Which server serves which artifact: found by loading them, in two onnxruntime versions."""

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
from release.compatibility.servers import Ended, LockError, LockServer, grouped
from release.images.docker import docker
from tests.fakes import unavailable
from training.import_onnx import make_contract

# One process at a time makes and removes images.
pytestmark = pytest.mark.xdist_group("docker")

ROOT = Path(__file__).parent.parent.parent
TRIAL = ROOT / "release" / "compatibility" / "trial.py"
OLDER = "1.22.1"
NEWER = re.findall(
    r"^onnxruntime==(\S+)", (ROOT / "serving" / "requirements.txt").read_text(), re.MULTILINE
)[0]
# What verification imports: a whole lock would take the test longer, and say no more.
IMPORTED = (
    "annotated-types", "numpy", "onnxruntime", "pydantic", "pydantic-core", "typing-extensions",
    "typing-inspection",
)  # fmt: skip


def publish(store: Path, version: str, opset: int, ir_version: int) -> Path:
    """An artifact whose file says what a runtime must support: x float32[N,2] -> y, the same."""
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
    """A store with one old model, and two that are too new: for their opset, for their IR."""
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
    # As an umask may leave it: nobody else may read it.
    for path in (store, *store.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return store


def lock(path: Path, onnxruntime: str) -> Path:
    """The slice of the server's lock that verification needs, with an onnxruntime of choice."""
    pins = re.findall(
        r"^([a-z0-9-]+)==(\S+)", (ROOT / "serving" / "requirements.txt").read_text(), re.MULTILINE
    )
    versions = {**dict(pins), "onnxruntime": onnxruntime}
    path.write_text("".join(f"{name}=={versions[name]}\n" for name in IMPORTED))
    return path


@pytest.fixture(scope="module")
def tried(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Compatibility:
    """What `make compatibility` finds with a lock of an older onnxruntime and one of ours."""
    directory = tmp_path_factory.mktemp("locks")
    locks = [lock(directory / f"{version}.txt", version) for version in (OLDER, NEWER)]
    try:
        # No image has a name like this: these are the servers of locks alone.
        return Compatibility.find(str(models), locks, "127.0.0.1/none", directory / "made")
    except LockError as error:
        if "No matching distribution" in str(error):
            unavailable(f"needs onnxruntime {OLDER} from a package index: {error}")
        raise


def verdicts(record: Compatibility) -> dict[tuple[str, str], tuple[bool | None, str | None]]:
    """Each cell by artifact and the onnxruntime of its server."""
    runs = {one.id: one.software.onnxruntime for one in record.servers if one.software is not None}
    return {
        (cell.artifact, runs[cell.server]): (cell.supported, cell.reason) for cell in record.cells
    }


def test_a_model_that_only_the_newer_onnxruntime_loads_is_refused_by_the_older(
    tried: Compatibility,
) -> None:
    """It must be known before the model is released to a server that cannot load it."""
    opset = f"model.onnx: opset ai.onnx 23, onnxruntime {OLDER} loads up to 22"
    ir_version = f"model.onnx: IR version 11, onnxruntime {OLDER} loads up to 10"

    assert verdicts(tried) == {
        ("same/1", OLDER): (True, None),
        ("same/9", OLDER): (False, opset),
        ("same/10", OLDER): (False, ir_version),
        ("same/1", NEWER): (True, None),
        ("same/9", NEWER): (True, None),
        ("same/10", NEWER): (True, None),
    }


def test_the_record_says_what_was_tried(tried: Compatibility, models: Path) -> None:
    """Asked of the servers and of the contracts, so that a reader need not believe a label."""
    assert [server.software and server.software.numpy for server in tried.servers] == [
        np.__version__
    ] * 2
    assert [one.path for one in tried.artifacts] == ["same/1", "same/9", "same/10"]
    assert [(one.opsets, one.ir_version) for one in tried.artifacts] == [
        ({"": 17}, 8),
        ({"": 23}, 10),
        ({"": 22}, 11),
    ]
    assert tried.artifacts[0].contract_sha256 == sha256_of(models / "same" / "1" / CONTRACT_FILE)
    assert tried.made_by.startswith(f"make compatibility STORE={models} LOCK='")
    assert all(cell.tried_at <= tried.made_at for cell in tried.cells)
    assert len(tried.notes) == 1
    assert tried.notes[0].startswith("No image was tried: ")


def test_it_is_written_as_a_page_and_as_json(
    tried: Compatibility, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = Matrix(tried)

    record, page = matrix.write(tmp_path / "docs")
    matrix.show()

    assert {record.name, page.name} == {RECORD, PAGE}
    assert sorted(path.name for path in record.parent.iterdir()) == sorted([RECORD, PAGE])
    assert Compatibility.read(record) == tried
    lines = page.read_text(encoding="utf-8").splitlines()
    assert lines[2].startswith(f"Made by `{tried.made_by}` on {tried.made_at:%Y-%m-%d}")
    assert "| same/9 | 23 | 10 | refused (1) | supported |" in lines
    assert "| same/10 | 22 | 11 | refused (2) | supported |" in lines
    assert f"1. same/9: `model.onnx: opset ai.onnx 23, onnxruntime {OLDER} loads up to 22`" in lines
    shown = capsys.readouterr().out
    assert "refused (1)" in shown
    assert f"1. same/9: model.onnx: opset ai.onnx 23, onnxruntime {OLDER} loads up to 22" in shown


def test_an_environment_is_made_once(tried: Compatibility, tmp_path: Path) -> None:
    """The next model is tried in seconds; an environment that is not whole is made again."""
    del tried
    empty = tmp_path / "lock.txt"
    empty.write_text("# nothing\n")
    server = LockServer.of(empty, tmp_path / "made")
    (server.python.parent.parent / "mark").touch()

    assert LockServer.of(empty, tmp_path / "made") == server
    assert (server.python.parent.parent / "mark").exists()
    (server.python.parent.parent / "complete").unlink()
    assert LockServer.of(empty, tmp_path / "made") == server
    assert not (server.python.parent.parent / "mark").exists()


def test_a_server_that_does_not_run_has_not_refused_anything(models: Path, tmp_path: Path) -> None:
    """Its cells say so, and a release is not held back by what nobody knows."""
    empty = tmp_path / "lock.txt"
    empty.write_text("# nothing\n")

    found = Compatibility.find(str(models), [empty], "127.0.0.1/none", tmp_path / "made")

    assert {cell.supported for cell in found.cells} == {None}
    assert all("onnxruntime" in str(cell.reason) for cell in found.cells)
    assert "not tried (1)" in Matrix(found).page()


def test_one_artifact_that_kills_the_process_takes_no_other_along(tmp_path: Path) -> None:
    """Some files end onnxruntime with a signal: the rest of the column must be known."""
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

    done = subprocess.run(
        [sys.executable, TRIAL, "1", str(tmp_path), *artifacts],
        capture_output=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )

    ended = json.loads(done.stdout)["ended"]
    assert [Ended.model_validate(ended[name]).reason for name in artifacts] == [
        "killed by signal 11",
        "no verdict within 1 s",
        "ImportError: no such library",
        "one; two",
        None,
    ]


def image(title: str, layers: str, created: int, *, name: bool = True) -> dict[str, object]:
    """What `docker image inspect` says of an image with these layers, a letter each."""
    return {
        "Id": f"sha256:{title}-{layers}-{created}",
        "Created": str(created),
        "RepoTags": [f"{title}:{layers}"] if name else [],
        "RepoDigests": None,
        "RootFS": {"Layers": list(layers)},
        "Config": {"Labels": {"org.opencontainers.image.title": title}},
    }


def test_images_with_the_same_server_are_one_server() -> None:
    """A hundred models in images are one column; a leftover without a name is none.

    Base, marks of what was removed (dated, so never the same), libraries, server, its folder,
    mode, model.
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

    assert [[one.names[0] for one in server.images] for server in servers] == [
        ["model_load:bolsfL", "model_in_image:bmlsfIx", "model_in_image:bnlsfIy"],
        ["model_in_image:bmltfIx"],
    ]


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ("s3://bucket/models", r"STORE: expected a directory, got s3://.* pull --to "),
        ("nowhere", "STORE: expected a directory, got none at nowhere"),
        (".", r"STORE: expected <name>/<version>/contract\.json .* make train"),
    ],
)
def test_a_store_without_artifacts_is_explained(
    store: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(CompatibilityError, match=said):
        Compatibility.find(store)


@pytest.mark.parametrize("program", ["nowhere/docker", "true"])
def test_without_any_server_it_says_how_to_get_one(
    models: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a Docker that is not there nor one without images may look like a verdict."""
    monkeypatch.setenv("DOCKER", program)

    with pytest.raises(CompatibilityError, match=r"make build.*LOCK=serving.* No image was tried"):
        Compatibility.find(str(models))


@pytest.mark.parametrize("store", ["https://user:zq@cdn/models", "models"])
def test_an_error_shows_no_credentials(store: str, models: Path, tmp_path: Path) -> None:
    """Neither those of STORE nor those in the message of a program that failed."""
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho 'get https://user:zq@proxy/v2: denied' >&2\nexit 1\n")
    docker.chmod(0o755)

    done = subprocess.run(
        [sys.executable, "-m", "release", "compatibility", f"--store={store}", f"--to={tmp_path}"],
        cwd=models.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DOCKER": str(docker)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    expected = "got https://…@cdn/models." if is_bucket(store) else "get https://…@proxy/v2: denied"
    assert expected in done.stderr
    assert "zq" not in done.stdout + done.stderr


def test_a_lock_that_cannot_be_had_is_explained(models: Path, tmp_path: Path) -> None:
    impossible = tmp_path / "impossible.txt"
    impossible.write_text("no-such-package @ file:///nowhere-1.0-py3-none-any.whl\n")
    for path, said in (
        (tmp_path / "none.txt", "expected a lock file: No such file"),
        (impossible, r"does not install on Python 3\.\d+\.\d+: .*nowhere.*\.whl"),
    ):
        with pytest.raises(LockError, match=said):
            Compatibility.find(str(models), [path], "127.0.0.1/none", tmp_path / "made")


def test_a_release_can_ask_the_record(tried: Compatibility, tmp_path: Path) -> None:
    """By the pair that it is: an image's id or digest, and the contract's sha256."""
    record = tmp_path / RECORD
    old, opset, _ = tried.artifacts
    images = grouped([image("model_load", "abL", 1)])[0].images
    pulled = images[0].model_copy(update={"digests": ("registry/model_load@sha256:d",)})
    servers = [
        Server(**{**dict(server), "images": (pulled,)}) if index == 0 else server
        for index, server in enumerate(tried.servers)
    ]
    assert supported(pulled.id, old.contract_sha256, record) is None

    Matrix(tried.model_copy(update={"servers": tuple(servers)})).write(tmp_path)

    for asked in (pulled.id, "sha256:d", "registry/model_load@sha256:d"):
        assert supported(asked, old.contract_sha256, record) is True
        assert supported(asked, opset.contract_sha256, record) is False
        assert supported(asked, "another", record) is None
    assert supported("another", old.contract_sha256, record) is None
    record.write_text('{"cells": []}')
    with pytest.raises(CompatibilityError, match="Run it again"):
        supported(pulled.id, old.contract_sha256, record)


@pytest.fixture(scope="module")
def registry(engine: None, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Both images of this project, built of its own files, below a name of this test's own."""
    del engine
    context = tmp_path_factory.mktemp("context")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("artifact", "serving", "model_in_image", "model_load"):
        shutil.copytree(ROOT / name, context / name, ignore=ignored)
    shutil.copy(ROOT / ".dockerignore", context)
    shutil.copytree(models / "same" / "1", context / "models" / "same" / "1")
    prefix = f"127.0.0.1/compat-{os.getpid()}"
    made = []
    try:
        for mode in ("model_load", "model_in_image"):
            options = ["-t", f"{prefix}/{mode}:test", "--build-arg=MODEL=models/same/1"]
            docker("build", "-q", *options, "-f", str(ROOT / f"Dockerfile.{mode}"), str(context))
            made.append(f"{prefix}/{mode}:test")
        yield prefix
    finally:
        docker("rmi", *made)


def test_an_image_is_a_server_whether_or_not_it_has_a_model(
    registry: str, models: Path, tmp_path: Path
) -> None:
    """What is deployed is what is tried; both modes' images hold one server."""
    store = tmp_path / "models"
    shutil.copytree(models, store)
    with (store / "same" / "9" / MODEL_FILE).open("ab") as file:
        file.write(b"more")

    found = Compatibility.find(str(store), registry=registry)

    (server,) = found.servers
    assert server.name == f"{registry}/model_load:test"
    assert server.software is not None
    assert server.software.onnxruntime == NEWER
    reasons = {cell.artifact: cell.reason for cell in found.cells}
    assert reasons["same/1"] is None
    assert reasons["same/10"] is None
    assert re.fullmatch(r"model\.onnx: expected .* bytes, .*; .*sha256.*", str(reasons["same/9"]))
    record, page = Matrix(found).write(tmp_path)
    assert "| same/9 | 23 | 10 | refused (1) |" in page.read_text()
    for mode, artifact in itertools.product(("model_load", "model_in_image"), found.artifacts):
        name = f"{registry}/{mode}:test"
        one = docker("image", "inspect", "--format={{.Id}}", name).strip()
        expected = artifact.version != "9"
        assert supported(one, artifact.contract_sha256, record) is expected
