"""The origin of an artifact for its contract: command, commit, owner, and library versions.

Without a time, so that the same training gives the same contract.
"""

import platform
import re
import shlex
import subprocess
from importlib import metadata
from pathlib import Path

from artifact.contract import Environment
from artifact.software import normalized, operating_system

# The libraries that training imports; their dependencies are read from their metadata.
_LIBRARIES = (
    "numpy", "onnx", "onnxruntime", "pydantic", "rich", "scikit-learn", "skl2onnx", "typer",
)  # fmt: skip
_THIS_CODE = Path(__file__).parent


def make_command(target: str, **variables: object) -> str:
    """Return a make command line for a shell, without variables that are None or ""."""
    words = [
        # Quotes for the shell suffice: the Makefile does not expand `$` in a value.
        f"{name}={shlex.quote(str(value))}"
        for name, value in variables.items()
        if value not in (None, "")
    ]
    return " ".join(["make", target, *words])


def commit() -> str | None:
    """Return the git commit, with `-dirty` if tracked files have changed.

    None outside a git repository or without git.
    """
    head = _git("rev-parse", "HEAD")
    if head is None:
        return None
    changed = _git("--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    return f"{head}-dirty" if changed else head


def owner(name: str | None) -> str:
    """Return the owner of a model: the name, else git's user.name, else "unknown"."""
    return name or _git("config", "user.name") or "unknown"


def environment() -> Environment:
    """Return the Python version, the operating system, and the versions of training's libraries."""
    return Environment(
        python=platform.python_version(), os=operating_system(), libraries=_libraries()
    )


def _libraries() -> dict[str, str]:
    """Return the versions of training's libraries and their dependencies.

    Other installed packages are ignored: linters must not change the contract.
    """
    versions: dict[str, str] = {}
    names = list(_LIBRARIES)
    while names:
        name = normalized(names.pop())
        if name in versions:
            continue
        try:
            library = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # a dependency on another platform or Python version
        versions[name] = library.version
        names += [
            re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
            for requirement in library.requires or []
            if "extra" not in requirement.partition(";")[2]
        ]
    return dict(sorted(versions.items()))


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - constant arguments
            ["git", *arguments],  # noqa: S607 - the git on PATH
            cwd=_THIS_CODE,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
