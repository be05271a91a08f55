"""The lock files: slices of one resolution, pinned with hashes, complete for the code."""

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
# The server uses private interfaces of these packages.
PINNED_TO_A_MINOR_VERSION = {"gunicorn", "uvicorn", "uvicorn-worker"}


def pinned(name: str) -> dict[str, str]:
    """Return the pins of a lock, hashes included, by package."""
    entries = re.split(r"\n(?=[a-z0-9])", LOCKS[name].read_text(encoding="utf-8"))
    return {
        entry.split("==")[0]: re.sub(r"\s*#.*", "", entry).strip()
        for entry in entries
        if "==" in entry
    }


def declared(*groups: str) -> dict[str, str]:
    """Return the requirements of pyproject.toml and of these groups, by package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    parts = [project["project"]["dependencies"]]
    parts += [project["dependency-groups"][group] for group in groups]
    return {
        re.split(r"[<>=!~; \[]", requirement)[0]: requirement
        for part in parts
        for requirement in part
    }


@pytest.mark.parametrize(("part", "whole"), [("serving", "all"), ("all", "dev")])
def test_a_lock_is_a_slice_of_the_larger_lock(part: str, whole: str) -> None:
    """Training, tests, and images run the same bytes."""
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
def test_a_lock_has_every_declared_dependency(lock: str, groups: tuple[str, ...]) -> None:
    assert set(declared(*groups)) <= set(pinned(lock))


@pytest.mark.parametrize("package", sorted(PINNED_TO_A_MINOR_VERSION))
def test_packages_with_private_interfaces_in_use_are_pinned_to_a_minor_version(
    package: str,
) -> None:
    """`make lock UPGRADE=1` must not install a version whose internals nobody has checked."""
    assert re.fullmatch(rf"{package}~=\d+\.\d+\.\d+", declared()[package])


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_exactly_one_version_and_its_hashes(lock: str) -> None:
    for entry in pinned(lock).values():
        assert re.match(r"^[a-z0-9-]+==[0-9][^ ;]*( ; [^\\]+)? \\", entry)
        assert "--hash=sha256:" in entry


def test_images_contain_no_package_of_training_or_tests() -> None:
    """The serving side never imports scikit-learn."""
    absent = {
        *("scikit-learn", "skl2onnx", "onnx", "scipy", "pytest", "httpx", "typer", "rich"),
        *("pip-audit", "requests"),
    }

    assert absent.isdisjoint(pinned("serving"))


def test_the_server_imports_only_packages_of_its_lock() -> None:
    """An undeclared import works on a developer's machine and fails in the image."""
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
