"""STORE and MODEL as a file:// URI: every release tool treats them like the plain path."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from release.local.server_process import ServerProcess
from tests.kubeconfig import write_unreachable_kubeconfig
from tests.servers import Start

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(store: Path, tmp_path: Path) -> Path:
    """A folder with models/, a Docker that fails, and a context whose cluster does not respond."""
    folder = tmp_path / "chéckout"
    shutil.copytree(store, folder / "models")
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho "docker $1 is called" >&2\nexit 1\n')
    docker.chmod(0o755)
    write_unreachable_kubeconfig(tmp_path / "kubeconfig")
    return folder


def release(checkout: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run a release tool; return its exit status and its output."""
    done = subprocess.run(
        [sys.executable, "-m", "release", *arguments],
        cwd=checkout,
        env={
            **os.environ,
            "COLUMNS": "300",
            "DOCKER": str(checkout.parent / "docker"),
            "KUBECONFIG": str(checkout.parent / "kubeconfig"),
            "PYTHONPATH": str(ROOT),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def forms_of(directory: Path) -> list[str]:
    """A directory as file:// URIs, percent-encoded and with the host localhost."""
    return [directory.as_uri(), directory.as_uri().replace("//", "//localhost", 1)]


BUILDS = {
    "build": ["--image-tag=1"],
    "build-model": [],
    "deploy": [
        "--image-tag=1", "--mode=model_load", "--namespace=inference", "--load-image=true",
        "--record=none.json",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", BUILDS)
def test_build_and_deploy_accept_a_file_uri(name: str, checkout: Path) -> None:
    """They get as far as Docker, with the same error as for the plain path."""
    if name == "deploy" and shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    models = checkout / "models"

    plain = release(checkout, name, f"--store={models}", f"--model={models}/iris/1", *BUILDS[name])
    results = [
        release(checkout, name, f"--store={form}", f"--model={form}/iris/1", *BUILDS[name])
        for form in forms_of(models)
    ]

    assert "is called" in plain[1]
    assert results == [plain] * 2


def test_a_model_outside_of_the_project_is_named_like_a_plain_path(
    checkout: Path, store: Path
) -> None:
    """Docker gets files below models/ only."""
    for form in (str(store), *forms_of(store)):
        status, output = release(checkout, "build", f"--store={form}", f"--model={form}/iris/1")

        assert status == 1
        assert "MODEL: expected a version below" in output
        assert f"got {store}/iris/1" in output


def test_a_store_without_the_model_is_named_as_the_user_wrote_it(
    checkout: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for form in forms_of(empty):
        status, output = release(checkout, "build", f"--store={form}", "--model=models/iris/1")

        assert status == 1
        assert f"STORE: {form} does not hold iris/1" in output


def test_a_file_uri_with_a_host_is_rejected_with_the_supported_forms(checkout: Path) -> None:
    for name in ("build", "compatibility"):
        option = "--model=models/iris/1" if name == "build" else "--to=docs"
        status, output = release(checkout, name, "--store=file://models", option)

        assert status == 1
        assert "STORE: expected a path or file:///path, got file://models" in output


def test_compatibility_reads_a_file_uri(checkout: Path) -> None:
    """It finds the models and then fails, because Docker has no server to test."""
    for form in forms_of(checkout / "models"):
        status, output = release(checkout, "compatibility", f"--store={form}", "--to=docs")

        assert status == 1
        assert "expected a server" in output
        assert "STORE" not in output


def test_prune_counts_the_artifacts_of_a_file_uri(checkout: Path) -> None:
    (checkout.parent / "docker").write_text("#!/bin/sh\n")  # no images
    expected = f"Artifacts: {len(list(checkout.glob('models/*/*/contract.json')))} in "

    for form in (str(checkout / "models"), *forms_of(checkout / "models")):
        status, output = release(checkout, "prune", f"--store={form}", KUBECONFIG="/dev/null")

        assert status == 0, output
        assert f"{expected}{form}" in output


def test_inventory_compares_servers_with_the_store_of_a_file_uri(
    running: dict[str, ServerProcess], checkout: Path, tmp_path: Path
) -> None:
    url = f"--urls={running['iris'].url}"
    (tmp_path / "empty").mkdir()

    for form in forms_of(checkout / "models"):
        _, output = release(checkout, "inventory", url, f"--store={form}")
        assert "STORE" not in output
        assert "does not have it" not in output
    _, output = release(checkout, "inventory", url, f"--store={(tmp_path / 'empty').as_uri()}")
    assert "does not have it" in output


def test_a_server_starts_from_a_file_uri(store: Path, server: Start) -> None:
    """`make serve STORE=file:///…` passes MODEL as MODEL_DIR or MODEL_URI."""
    server((store / "iris" / "1").as_uri()).wait_until_ready()
