"""`make deploy` and the like where they refuse, before anything in a cluster is changed.

What they do to a cluster is tests/e2e, on a real one.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from release.compatibility.record import RECORD
from tests.fakes import PasswordStandIn, unavailable

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture(autouse=True)
def _nobody_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context whose cluster does not answer; kubectl itself is the real one."""
    if shutil.which("kubectl") is None:
        unavailable("needs kubectl")
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "gone",
        "clusters": [{"name": "gone", "cluster": {"server": "https://127.0.0.1:1"}}],
        "contexts": [{"name": "gone", "context": {"cluster": "gone", "user": "nobody"}}],
        "users": [{"name": "nobody", "user": {"token": "none"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(path))


@pytest.fixture
def checkout(store: Path, tmp_path: Path) -> Path:
    """A folder with models, as `make deploy` is run in one."""
    shutil.copytree(store, tmp_path / "here" / "models")
    return tmp_path / "here"


def command(name: str, directory: Path, *options: str) -> str:
    """Run a command, which must fail, and return what it says."""
    given = {option.partition("=")[0]: option for option in options}
    defaults = ["--mode=model_load", "--model=models/iris/1", "--namespace=inference"]
    if name != "destroy":
        defaults.append("--store=models")
    if name in ("deploy", "canary"):
        defaults += ["--load-image=true", f"--record={directory / RECORD}"]
    taken = [option for option in defaults if option.partition("=")[0] not in given]
    done = subprocess.run(
        [sys.executable, "-m", "release", name, *taken, *options],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("name", ["promote", "abort", "rollback", "destroy"])
def test_a_cluster_that_does_not_answer_is_named(name: str, checkout: Path) -> None:
    said = command(name, checkout)

    assert said.startswith("kubectl ")
    assert "127.0.0.1:1" in said


@pytest.mark.parametrize("name", ["deploy", "canary", "promote", "abort", "rollback", "destroy"])
def test_without_a_cluster_the_way_to_one_is_said(
    name: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/dev/null")

    assert "`make cluster` makes one" in command(name, checkout)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--mode=both", "MODE: expected model_in_image or model_load, got both"),
        ("--model=iris", "MODEL: expected <store>/<name>/<version>, got iris"),
        ("--model=models/Iris/1", "MODEL: expected <store>/<name>/<version>, got models/Iris/1"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(option: str, said: str, checkout: Path) -> None:
    assert said in command("rollback", checkout, option)


@pytest.mark.parametrize("steps", ["", "0,50", "50,25", "50,50", "10,101", "many"])
def test_steps_rise_to_100_at_most(steps: str, checkout: Path) -> None:
    said = command("canary", checkout, "--auto", f"--steps={steps}")

    assert "STEPS: expected rising percentages" in said


@pytest.mark.usefixtures("engine")
def test_an_image_that_is_not_there_is_to_be_built(checkout: Path) -> None:
    said = command("deploy", checkout, "--image-tag=nobody-has-built-this")

    assert "nobody-has-built-this" in said
    assert "Build it first: make build" in said


def test_a_model_that_is_not_in_the_store_is_refused(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    said = command("deploy", checkout, f"--store={tmp_path / 'empty'}")

    assert f"STORE: {tmp_path / 'empty'} does not hold iris/1" in said


@pytest.fixture
def protected(store: Path, tmp_path: Path) -> Iterator[PasswordStandIn]:
    """A store that demands a password and has the iris model."""
    (tmp_path / "web").mkdir()
    with PasswordStandIn(tmp_path / "web") as started:
        started.publish(store / "iris" / "1")
        yield started


@pytest.mark.parametrize("name", ["deploy", "canary"])
def test_a_password_does_not_get_into_a_manifest(
    name: str, checkout: Path, protected: PasswordStandIn
) -> None:
    """Whoever may read pods reads MODEL_URI."""
    error = command(name, checkout, f"--store={protected.uri}")

    assert "STORE: expected no user:password@ with SOURCE=bucket, got http://…@127.0.0.1" in error
    assert "Secret `model-store`" in error
    assert protected.leaks(error) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--store={uri}", "--source=volume"], "SOURCE=volume does not go with STORE=http://…@"),
        (["--store={uri}", "--model=models/digits/1"], "STORE: http://…@"),
        (["--store=s3://AKIAzq:zq@bucket/models"], "AWS_ACCESS_KEY_ID"),
        (["--store=az://c/models?sig=zq"], "AZURE_STORAGE_SAS_TOKEN"),
    ],
)
def test_an_error_shows_no_credentials_of_the_store(
    options: list[str], message: str, checkout: Path, protected: PasswordStandIn
) -> None:
    filled = (option.format(uri=protected.uri) for option in options)

    error = command("deploy", checkout, *filled)

    assert message in error
    assert protected.leaks(error) == []
