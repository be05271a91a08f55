"""The command line: what make calls."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from artifact.verify import sha256_of


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m training` with warnings as errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "training", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_training_shows_its_steps_and_ends_with_what_it_made(tmp_path: Path) -> None:
    done = run("train", "--dataset=iris", "--version=1", "--alias=stable", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line[:6] for line in lines[:6]] == [f"[{i}/6] " for i in range(1, 7)]
    facts = dict(line.strip().split("  ", 1) for line in lines[6:])
    facts = {name: value.strip() for name, value in facts.items()}
    assert list(facts)[:3] == ["accuracy", "log_loss", "largest difference"]
    assert facts["artifact"] == "models/iris/1"
    assert facts["alias"] == "stable -> 1"
    for name in ("model.onnx", "contract.json"):
        assert facts[f"{name} sha256"] == sha256_of(tmp_path / "models/iris/1" / name)

    again = run("train", "--dataset=iris", "--version=1", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == (
        "models/iris/1: this version exists, and versions never change. Choose another VERSION.\n"
    )


def test_a_mistake_is_one_message_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (["train", "--data=a.csv", "--target=y"], "NAME: expected with DATA"),
        (["contract", "--name=own"], "ONNX and PURPOSE: expected a value"),
        (["train", "--dataset=iris", "--store=file"], "file"),
    ):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--store=s3://AKIAzq:zq/zq@bucket/models", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("--store=gs://zq@bucket", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("--store=az://account:zq@container", "AZURE_STORAGE_ACCOUNT_KEY"),
        ("--store=az://container/models?sv=1&sig=zq", "AZURE_STORAGE_SAS_TOKEN"),
        ("--store=s3://bucket/models#zq", "expected no ? and no #"),
        ("--store=https://user:zq@cdn/models", "STORE: expected a directory, file:///directory"),
        ("--store=S3://AKIAzq:zq@bucket/models", "STORE: expected a directory, file:///directory"),
        ("--store=file:///models?zq", "STORE: expected a directory, file:///directory"),
        ("--data=https://user:zq@cdn/rows.csv", "rows.csv"),
    ],
)
def test_an_error_shows_no_credentials(option: str, message: str, tmp_path: Path) -> None:
    """A training's log is kept by CI."""
    others = ["--target=y", "--name=a"] if option.startswith("--data") else ["--dataset=iris"]

    done = run("train", *others, option, cwd=tmp_path)

    assert done.returncode == 1
    assert message in done.stderr
    assert "zq" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_contract_does_not_name_its_store(tmp_path: Path) -> None:
    """Contracts are copied from store to store, and every client may read them."""
    done = run("train", "--dataset=iris", "--store=zq", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "zq" not in (tmp_path / "zq" / "iris" / "1" / "contract.json").read_text()


# Stops while it publishes, so that the test can end it there.
STOPPING = """
import runpy, sys, time
from artifact import directory_store as store

def stop(*_):
    print("stopped", flush=True)
    time.sleep(60)

store._move = stop
sys.argv = ["training", "train", "--dataset=iris", "--store=store"]
runpy.run_module("training", run_name="__main__")
"""


def test_a_terminated_training_leaves_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STOPPING],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    ) as training:
        assert training.stdout
        assert any(line.endswith("stopped\n") for line in training.stdout)
        training.send_signal(signal.SIGTERM)
        training.stdout.read()
    assert training.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
