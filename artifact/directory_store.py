"""The model store: where an artifact becomes a version, at once or not at all.

Called last, by train.py and own.py, with an artifact that is complete in memory. A
version appears by one rename and never changes; an alias is the only file that does.
"""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from artifact.contract import (
    ALIASES,
    CONTRACT_FILE,
    MODEL_FILE,
    Contract,
    ContractMismatch,
    read_contract,
)
from artifact.errors import StoreError
from artifact.redact import redact
from artifact.uri import file_path
from artifact.verify import differences

_STAGING = ".staging-"


def store_directory(store: str | Path) -> Path:
    """Return the directory that STORE names: a path or a file:// URI.

    Raises StoreError for what is neither.
    """
    text = str(store)
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        return Path(text)
    if (path := file_path(text)) is None:
        raise StoreError(
            "STORE: expected a directory, file:///directory, s3://, gs:// or az://, got "
            f'"{redact(text)}"'
        )
    return path


def refuse_existing(store: Path, name: str, version: str) -> None:
    """Raise StoreError when the store has this version, whatever it holds."""
    path = store / name / version
    if os.path.lexists(path):
        raise StoreError(
            f"{path}: this version exists, and versions never change. Choose another VERSION."
        )


def publish(store: Path, contract: Contract, model: bytes) -> Path:
    """Write an artifact beside the others, check it as a server does, and make it visible.

    Returns its directory. Raises StoreError when the version exists, and when the
    files, the session or the golden rows differ from the contract; the store is then what
    it was before.
    """
    destination = store / contract.name / contract.version
    with _staging(store) as staging:
        refuse_existing(store, contract.name, contract.version)
        staged = staging / contract.name / contract.version
        staged.mkdir(parents=True)
        write(staged / MODEL_FILE, model)
        write(staged / CONTRACT_FILE, contract.to_json().encode())
        refuse_differences(staged, str(destination))
        _move(staged, destination)
    return destination


def set_alias(store: Path, name: str, alias: str, version: str) -> Path:
    """Point an alias of a model at one of its versions; return the alias's file.

    A reader sees the old version or the new one. Raises StoreError when the store does
    not have the version.
    """
    if not (store / name / version / CONTRACT_FILE).is_file():
        raise StoreError(f"{store / name / version}: expected a version for {alias}, got none")
    destination = store / name / ALIASES / alias
    with _staging(store) as staging:
        staged = staging / ALIASES / alias
        staged.parent.mkdir()
        write(staged, f"{version}\n".encode())
        _move(staged, destination)
    return destination


@dataclass(frozen=True)
class Directory:
    """A store in a directory; what Bucket is for the others."""

    path: Path

    def refuse_existing(self, name: str, version: str) -> None:
        """Raise StoreError when the store has this version, whatever it holds."""
        refuse_existing(self.path, name, version)

    def publish(self, contract: Contract, model: bytes) -> str:
        """Make an artifact a version, and return its path."""
        return str(publish(self.path, contract, model))

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias at a version that the store has."""
        set_alias(self.path, name, alias, version)


@contextmanager
def _staging(store: Path) -> Iterator[Path]:
    """Yield a hidden directory in the store; on its file system a rename is enough.

    It is gone afterwards, and so are those that killed processes left behind. What is
    created of the store itself is removed again when the block raises.
    """
    created = _make_directories(store)
    try:
        with _alone_in(store) as alone:
            # Whoever staged these would hold the lock if it were still alive.
            for left_behind in store.glob(f"{_STAGING}*") if alone else ():
                shutil.rmtree(left_behind, ignore_errors=True)
            staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=store))
            try:
                yield staging
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except BaseException:
        for directory in created:
            with suppress(OSError):
                directory.rmdir()
        raise


@contextmanager
def _alone_in(store: Path) -> Iterator[bool]:
    """Wait for other publishers; the system frees the lock of a killed one.

    Yields False on file systems that cannot lock a directory (NFS): renaming still keeps
    versions whole there, but nobody can tell what was left behind.
    """
    descriptor = os.open(store, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _make_directories(path: Path) -> list[Path]:
    """Create a directory and its parents, 0755; return those created, innermost first."""
    missing = [path, *path.parents]
    missing = missing[: next(i for i, parent in enumerate(missing) if parent.exists())]
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
    return missing


def write(path: Path, content: bytes) -> None:
    """Write a file that outlives a power cut, 0644 whatever the umask."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
    path.parent.chmod(0o755)


def _move(staged: Path, destination: Path) -> None:
    """Make something staged visible by one rename, together with the folder it is first in."""
    if destination.parent.is_dir():
        source, target = staged, destination
    else:
        source, target = staged.parent, destination.parent
    staged.parent.chmod(0o755)
    for directory in (staged, staged.parent) if staged.is_dir() else (staged.parent,):
        _sync(directory)
    try:
        # Rename last: a reader sees all of it or nothing.
        source.replace(target)
    except OSError as error:
        raise StoreError(
            f"{destination}: cannot be published, {error.strerror}. If another training published "
            "it at the same moment, choose another VERSION; otherwise try again."
        ) from error
    _sync(target.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_differences(staged: Path, destination: str) -> None:
    """Raise StoreError with every reason that a server would refuse an artifact for."""
    try:
        found = differences(read_contract(staged), staged)
    except ContractMismatch as mismatch:
        found = mismatch.differences
    if found:
        listed = "".join(f"\n  - {difference}" for difference in found)
        raise StoreError(
            f"{destination}: a server would refuse it, so it is not published:{listed}"
        )
