"""Where an artifact comes from: the command, the commit and the software that made it.

Written into the contract by train.py and own.py. Holds no time: the same training gives
the same contract.
"""

import platform
import re
import shlex
import subprocess
from importlib import metadata
from pathlib import Path

from artifact.contract import Environment
from artifact.software import normalized, operating_system

# What training calls; what these need in turn is found from their metadata.
_LIBRARIES = (
    "numpy", "onnx", "onnxruntime", "pydantic", "rich", "scikit-learn", "skl2onnx", "typer",
)  # fmt: skip
_THIS_CODE = Path(__file__).parent


def make_command(target: str, **variables: object) -> str:
    """Return a make command line for a shell; variables that are None or "" are left out."""
    words = [
        # Quotes for the shell suffice: the Makefile does not expand `$` in a value.
        f"{name}={shlex.quote(str(value))}"
        for name, value in variables.items()
        if value not in (None, "")
    ]
    return " ".join(["make", target, *words])


def commit() -> str | None:
    """Return the commit of this code, with `-dirty` when tracked files differ from it.

    None outside a git repository and where git is not installed.
    """
    head = _git("rev-parse", "HEAD")
    if head is None:
        return None
    changed = _git("--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    return f"{head}-dirty" if changed else head


def owner(given: str | None) -> str:
    """Return who answers for a model: the one given, git's user, or "unknown"."""
    return given or _git("config", "user.name") or "unknown"


def environment() -> Environment:
    """Return this Python, this operating system and every library that training uses."""
    return Environment(
        python=platform.python_version(), os=operating_system(), libraries=_libraries()
    )


def _libraries() -> dict[str, str]:
    """Return the versions of what training needs, not of all that happens to be installed.

    Linters that `make check` adds later must not change the contract.
    """
    found: dict[str, str] = {}
    wanted = list(_LIBRARIES)
    while wanted:
        name = normalized(wanted.pop())
        if name in found:
            continue
        try:
            library = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # needed on another platform or Python
        found[name] = library.version
        wanted += [
            re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
            for requirement in library.requires or []
            if "extra" not in requirement.partition(";")[2]
        ]
    return dict(sorted(found.items()))


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - constant arguments
            ["git", *arguments],  # noqa: S607 - whichever git the user has
            cwd=_THIS_CODE,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
