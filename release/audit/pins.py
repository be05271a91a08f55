"""Read the pinned versions of lock files and the base images of the Dockerfiles."""

import re
from collections.abc import Iterable
from pathlib import Path

from artifact.software import normalized
from release.audit.check import AuditError, Pin

LOCKS = (Path("serving/requirements.txt"), Path("requirements.txt"), Path("requirements-dev.txt"))
DOCKERFILES = (Path("Dockerfile.model_in_image"), Path("Dockerfile.model_load"))
_PIN = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(\[[^]]*\])?==(?P<version>[\w.!+-]+)( *;.*)?")
_HASH_OR_COMMENT = re.compile(r"\s--hash=\S+|(^|\s)#.*")
# Other options, such as `-r other.txt`, are errors: their packages would not be checked.
_INDEX_OPTION = re.compile(r"-i |--(index-url|extra-index-url|find-links|trusted-host)\b")
_BASE = re.compile(r"\nARG BASE_IMAGE=\S*\bpython:(?P<python>[\d.]+)-(slim-)?(?P<debian>[a-z]+)")


def locked(paths: Iterable[Path]) -> dict[Pin, list[str]]:
    """Return the pinned versions and their lock files. Raises AuditError and OSError.

    Environment markers are ignored: a lock file covers every platform, not only this machine's.
    """
    pins: dict[Pin, list[str]] = {}
    for path in paths:
        for pin in _pins(path):
            pins.setdefault(pin, []).append(str(path))
    return pins


def base_images() -> dict[Pin, list[str]]:
    """Return the versions of Python and Debian in the base images. Raises AuditError, OSError."""
    pins: dict[Pin, list[str]] = {}
    for path in DOCKERFILES:
        base = _BASE.search("\n" + path.read_text(encoding="utf-8"))
        if base is None:
            raise AuditError(
                f"{path}: expected a line such as ARG BASE_IMAGE=python:3.13-slim-trixie"
            )
        for pin in base.groupdict().items():
            pins.setdefault(pin, []).append(str(path))
    return pins


def _pins(path: Path) -> set[Pin]:
    text = path.read_text(encoding="utf-8", errors="replace").replace("\\\n", " ")
    lines = {_HASH_OR_COMMENT.sub("", line).strip() for line in text.splitlines()} - {""}
    pins = {line: _PIN.fullmatch(line) for line in lines if not _INDEX_OPTION.match(line)}
    invalid = sorted(line for line, pin in pins.items() if pin is None)
    if invalid or not pins:
        raise AuditError(f"LOCK: {path}: expected only lines such as numpy==2.4.6, got {invalid}")
    return {(normalized(pin["name"]), pin["version"]) for pin in pins.values() if pin}
