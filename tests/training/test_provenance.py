"""The command, the commit and the software that a contract records."""

import shlex
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from training import provenance as origin


def test_the_command_can_be_pasted_into_a_shell() -> None:
    """tests/test_makefile.py runs such a command with the Makefile."""
    value = "what's $5 & more"

    command = origin.make_command("train", DATA=value, NAME="a", OWNER=None, TASK="")

    assert shlex.split(command) == ["make", "train", f"DATA={value}", "NAME=a"]


def test_the_commit_says_when_the_code_differs_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin, "_THIS_CODE", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert origin.commit() is None

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=T", "-c", "user.email=t@example.org", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "--quiet")
    code = tmp_path / "code.py"
    code.write_text("1\n")
    git("add", ".")
    git("commit", "--quiet", "--message", "Begin")
    (tmp_path / "notes.txt").write_text("not tracked\n")
    head = git("rev-parse", "HEAD")
    assert origin.commit() == head
    code.write_text("2\n")
    assert origin.commit() == f"{head}-dirty"


def test_training_works_where_git_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert origin.commit() is None
    assert origin.owner(None) == "unknown"
    assert origin.owner("Ada") == "Ada"


def test_the_environment_lists_what_training_needs_and_nothing_else() -> None:
    """Linters installed by another target must not change the bytes of a contract."""
    libraries = origin.environment().libraries
    for name in ("scikit-learn", "scipy", "skl2onnx", "onnx", "onnxruntime", "numpy", "protobuf"):
        assert libraries[name] == metadata.version(name)
    assert "pytest" not in libraries
    assert list(libraries) == sorted(libraries)
