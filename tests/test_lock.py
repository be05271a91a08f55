"""The locks: one resolution, slices of it, and nothing installed that is not pinned."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCKS = {
    "serving": ROOT / "serving" / "requirements.txt",
    "all": ROOT / "requirements.txt",
    "dev": ROOT / "requirements-dev.txt",
}


def pinned(name: str) -> dict[str, str]:
    """The pins of a lock, hashes included, by package."""
    entries = re.split(r"\n(?=[a-z0-9])", LOCKS[name].read_text(encoding="utf-8"))
    return {
        entry.split("==")[0]: re.sub(r"\s*#.*", "", entry).strip()
        for entry in entries
        if "==" in entry
    }


def wanted(*groups: str) -> set[str]:
    """What pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [project["project"]["dependencies"]]
    asked += [project["dependency-groups"][group] for group in groups]
    return {re.split(r"[<>=!~; \[]", name)[0] for part in asked for name in part}


@pytest.mark.parametrize(("part", "whole"), [("serving", "all"), ("all", "dev")])
def test_a_lock_is_a_slice_of_the_larger_one(part: str, whole: str) -> None:
    """Training, tests and images run the same bytes."""
    larger = pinned(whole)

    assert {name: larger.get(name) for name in pinned(part)} == pinned(part)


@pytest.mark.parametrize(
    ("lock", "groups"),
    [
        ("serving", ()),
        ("all", ("training", "release", "test")),
        ("dev", ("training", "release", "test", "dev")),
    ],
)
def test_a_lock_has_what_the_project_asks_for(lock: str, groups: tuple[str, ...]) -> None:
    assert wanted(*groups) <= set(pinned(lock))


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_one_version_and_its_hashes(lock: str) -> None:
    for entry in pinned(lock).values():
        assert re.match(r"^[a-z0-9-]+==[0-9][^ ;]*( ; [^\\]+)? \\", entry)
        assert "--hash=sha256:" in entry


def test_the_images_have_nothing_that_only_training_or_tests_need() -> None:
    """The serving side never imports scikit-learn."""
    absent = {
        *("scikit-learn", "skl2onnx", "onnx", "scipy", "pytest", "httpx", "typer", "rich"),
        *("pip-audit", "requests"),
    }

    assert absent.isdisjoint(pinned("serving"))


def test_the_server_imports_with_its_slice_alone() -> None:
    """Every module that serving imports belongs to a package of the slice."""

    blocked = sorted(set(pinned("dev")) - set(pinned("serving")))
    code = (
        "import importlib.metadata as md, sys, serving.server.gunicorn, model_in_image.source, "
        "model_load.source;"
        "tops = {name.split('.')[0] for name in sys.modules};"
        "of = md.packages_distributions();"
        "used = {d.lower().replace('_', '-') for top in tops for d in of.get(top, [])};"
        f"print(sorted(used & set({blocked!r})))"
    )

    imported = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert imported.stdout.strip() == "[]"
