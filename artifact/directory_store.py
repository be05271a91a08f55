"""Publish artifacts and aliases in a model store that is a directory.

A version appears by one rename: readers see the whole version or nothing, also if the publisher
is killed. A version never changes afterwards; an alias is the only file that does.
"""

import fcntl
import os
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
from artifact.verify import differences

_STAGING = ".staging-"


@dataclass(frozen=True)
class DirectoryStore:
    """A model store in a directory, created by the first publication."""

    path: Path

    def reject_existing(self, name: str, version: str) -> None:
        """Raise StoreError if the store has this version, with any content."""
        path = self.path / name / version
        # Not exists(): a broken symbolic link occupies the name as well.
        if os.path.lexists(path):
            raise StoreError(
                f"{path}: this version exists, and versions never change. Choose another VERSION."
            )

    def publish(self, contract: Contract, model: bytes) -> str:
        """Write an artifact, verify it as a server does, and make it visible; return its path.

        Raises StoreError if the version exists, or if the files, the session or the golden rows
        differ from the contract. The store is then unchanged.
        """
        destination = self.path / contract.name / contract.version
        with _staging(self.path) as staging:
            # Checked under the lock: another publisher may have created it since the first check.
            self.reject_existing(contract.name, contract.version)
            _move(stage(staging, contract, model, str(destination)), destination)
        return str(destination)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias of a model at one of its versions.

        A reader sees the old version or the new one. Raises StoreError if the store does not
        have the version.
        """
        version_path = self.path / name / version
        if not (version_path / CONTRACT_FILE).is_file():
            raise StoreError(f"{version_path}: expected a version for {alias}, got none")
        with _staging(self.path) as staging:
            staged = staging / ALIASES / alias
            staged.parent.mkdir()
            _write(staged, f"{version}\n".encode())
            _move(staged, self.path / name / ALIASES / alias)


def stage(parent: Path, contract: Contract, model: bytes, destination: str) -> Path:
    """Write an artifact below a directory, verify it as a server does, and return its directory.

    destination: the path or URI to publish to, for the StoreError that lists every difference.
    """
    staged = parent / contract.name / contract.version
    staged.mkdir(parents=True)
    _write(staged / MODEL_FILE, model)
    _write(staged / CONTRACT_FILE, contract.to_json().encode())
    try:
        problems = differences(read_contract(staged), staged)
    except ContractMismatch as mismatch:
        problems = mismatch.differences
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise StoreError(f"{destination}: not published, because servers would reject it:{listed}")
    return staged


@contextmanager
def _staging(store: Path) -> Iterator[Path]:
    """Yield a hidden directory in the store: inside one file system a rename publishes it.

    Removes it afterwards, and the staging directories that killed processes left. If the block
    raises, directories that were created for the store itself are removed, too.
    """
    created = _make_directories(store)
    try:
        with _lock_store(store) as locked:
            # A publisher that is alive holds the lock, so these belong to killed ones.
            for abandoned in store.glob(f"{_STAGING}*") if locked else ():
                shutil.rmtree(abandoned, ignore_errors=True)
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
def _lock_store(store: Path) -> Iterator[bool]:
    """Wait for other publishers and lock the store; the kernel frees the lock of a killed one.

    Yields False on file systems that cannot lock a directory (NFS). Versions are whole there
    too, because they are renamed; but abandoned staging directories cannot be recognised.
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
    """Create a directory and its parents, 0755; return the created ones, innermost first."""
    missing = [path, *path.parents]
    missing = missing[: next(i for i, parent in enumerate(missing) if parent.exists())]
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        # mkdir(mode) would be reduced by the umask; a server of another user must read the store.
        directory.chmod(0o755)
    return missing


def _write(path: Path, content: bytes) -> None:
    """Create a file that survives a power cut, 0644 with any umask."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
    path.parent.chmod(0o755)


def _move(staged: Path, destination: Path) -> None:
    """Rename a staged file or directory to its final path, with its parent if that is new."""
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
    """Write a directory's entries to disk: fsync of a file does not include its name."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
