"""Errors of `make deploy` and the other cluster commands before they change the cluster.

tests/e2e tests on a real cluster what they change.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from release.compatibility.record import RECORD
from tests.fakes import FakePasswordStore, unavailable
from tests.kubeconfig import write_unreachable_kubeconfig

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture(autouse=True)
def _unreachable_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context whose cluster is unreachable, with the real kubectl."""
    if shutil.which("kubectl") is None:
        unavailable("needs kubectl")
    path = write_unreachable_kubeconfig(tmp_path / "kubeconfig")
    monkeypatch.setenv("KUBECONFIG", str(path))


@pytest.fixture
def checkout(store: Path, tmp_path: Path) -> Path:
    """A folder with models, in which `make deploy` runs."""
    shutil.copytree(store, tmp_path / "here" / "models")
    return tmp_path / "here"


def command(name: str, directory: Path, *options: str) -> str:
    """Run a command, which must fail, and return its error output."""
    overridden = {option.partition("=")[0] for option in options}
    defaults = ["--mode=model_load", "--model=models/iris/1", "--namespace=inference"]
    if name != "destroy":
        defaults.append("--store=models")
    if name in ("deploy", "canary"):
        defaults += ["--load-image=true", f"--record={directory / RECORD}"]
    defaults = [option for option in defaults if option.partition("=")[0] not in overridden]
    process = subprocess.run(
        [sys.executable, "-m", "release", name, *defaults, *options],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode != 0
    assert "Traceback" not in process.stderr
    return process.stderr


@pytest.mark.parametrize("name", ["promote", "abort", "rollback", "destroy"])
def test_an_error_names_the_unreachable_cluster(name: str, checkout: Path) -> None:
    error = command(name, checkout)

    assert error.startswith("kubectl ")
    assert "127.0.0.1:1" in error


@pytest.mark.parametrize("name", ["deploy", "canary", "promote", "abort", "rollback", "destroy"])
def test_without_a_cluster_the_error_says_how_to_create_one(
    name: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/dev/null")

    assert "`make cluster` creates a cluster" in command(name, checkout)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--mode=both", "MODE: expected model_in_image or model_load, got both"),
        ("--model=iris", "MODEL: expected <store>/<name>/<version>, got iris"),
        ("--model=models/Iris/1", "MODEL: expected <store>/<name>/<version>, got models/Iris/1"),
    ],
)
def test_an_error_names_the_invalid_variable(option: str, message: str, checkout: Path) -> None:
    assert message in command("rollback", checkout, option)


@pytest.mark.parametrize("steps", ["", "0,50", "50,25", "50,50", "10,101", "many"])
def test_steps_that_do_not_rise_to_100_are_rejected(steps: str, checkout: Path) -> None:
    error = command("canary", checkout, "--auto", f"--steps={steps}")

    assert "STEPS: expected rising percentages" in error


@pytest.mark.parametrize("name", ["deploy", "canary"])
@pytest.mark.parametrize("memory", ["512", "512MB", "much"])
def test_an_invalid_memory_is_rejected(name: str, memory: str, checkout: Path) -> None:
    error = command(name, checkout, f"--memory={memory}")

    assert "MEMORY: expected a Kubernetes quantity of at least 1Mi, such as 512Mi" in error
    assert error.strip().endswith(f"got {memory}")


@pytest.mark.usefixtures("engine")
def test_a_missing_image_must_be_built_first(checkout: Path) -> None:
    error = command("deploy", checkout, "--image-tag=nobody-has-built-this")

    assert "nobody-has-built-this" in error
    assert "Build it first: make build" in error


def test_a_model_that_is_not_in_the_store_is_rejected(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    error = command("deploy", checkout, f"--store={tmp_path / 'empty'}")

    assert f"STORE: {tmp_path / 'empty'} does not hold iris/1" in error


@pytest.fixture
def protected(store: Path, tmp_path: Path) -> Iterator[FakePasswordStore]:
    """A store that requires a password and has the iris model."""
    (tmp_path / "web").mkdir()
    with FakePasswordStore(tmp_path / "web") as web_store:
        web_store.publish(store / "iris" / "1")
        yield web_store


@pytest.mark.parametrize("name", ["deploy", "canary"])
def test_a_password_is_never_written_to_a_manifest(
    name: str, checkout: Path, protected: FakePasswordStore
) -> None:
    """Everyone who can read pods can read MODEL_URI."""
    error = command(name, checkout, f"--store={protected.uri}")

    assert "STORE: expected no user:password@ with SOURCE=bucket, got http://…@127.0.0.1" in error
    assert "Secret `model-store`" in error
    assert protected.leaks(error) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--store={uri}", "--source=volume"],
            "STORE: expected a directory, with SOURCE=volume, got http://…@",
        ),
        (["--store={uri}", "--model=models/digits/1"], "STORE: http://…@"),
        (["--store=s3://AKIAzq:zq@bucket/models"], "AWS_ACCESS_KEY_ID"),
        (["--store=az://c/models?sig=zq"], "AZURE_STORAGE_SAS_TOKEN"),
    ],
)
def test_an_error_shows_no_credentials_of_the_store(
    options: list[str], message: str, checkout: Path, protected: FakePasswordStore
) -> None:
    filled = (option.format(uri=protected.uri) for option in options)

    error = command("deploy", checkout, *filled)

    assert message in error
    assert protected.leaks(error) == []
