"""Cache of downloaded models on this machine's disk, keyed by sha256.

Processes share the cache, and it survives restarts. An entry is `<sha256>/model.onnx`: that file
appears by a rename once its content is verified. Two locks protect an entry. The lock of its
folder is shared by every process that downloads or serves the model, and exclusive only for
eviction. The lock of `pull.lock` is exclusive and serialises downloads.
"""

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from artifact.contract import CONTRACT_FILE, MODEL_FILE, ModelFile
from artifact.errors import StoreError
from artifact.verify import sha256_of

# flock() has no timeout, so locks are tried at this interval.
_LOCK_POLL_SECONDS = 0.1
_is_sha256 = re.compile("[0-9a-f]{64}").fullmatch


@dataclass(frozen=True)
class Entry:
    """The folder of one model in the cache; the model itself may be missing."""

    # Named by the sha256 of the model.
    directory: Path

    @property
    def path(self) -> Path:
        """The verified model."""
        return self.directory / MODEL_FILE

    @property
    def pull_lock(self) -> Path:
        """The file that a process locks while it downloads the model."""
        return self.directory / "pull.lock"

    @property
    def partial(self) -> Path:
        """The download in progress, not verified yet."""
        return self.directory / f"{MODEL_FILE}.partial"

    def is_valid(self, model: ModelFile) -> bool:
        """Return whether the model exists with the right content; delete a corrupted one."""
        if not self.path.is_file():
            return False
        if self.path.stat().st_size == model.size_bytes and sha256_of(self.path) == model.sha256:
            # The modification time of the folder is the time of last use, for eviction.
            os.utime(self.directory)
            return True
        self.path.unlink()
        return False

    def size_bytes(self) -> int:
        """Return the size of the entry on disk."""
        return sum(path.lstat().st_size for path in (self.path, self.partial) if path.is_file())

    def remove_if_unused(self) -> int:
        """Remove the entry unless a process uses it; return the number of freed bytes."""
        lock = _lock(self.directory, fcntl.LOCK_EX)
        if lock is None:
            return 0
        try:
            freed = self.size_bytes()
            shutil.rmtree(self.directory)
        finally:
            os.close(lock)
        return freed

    def artifact(self, contract: bytes) -> Path:
        """Return a directory for a server: this contract, and a link to the model."""
        # Several versions may have the same model, each with a contract of its own.
        directory = self.directory / hashlib.sha256(contract).hexdigest()
        directory.mkdir(exist_ok=True)
        partial = directory / f"{CONTRACT_FILE}.partial"
        partial.write_bytes(contract)
        partial.replace(directory / CONTRACT_FILE)
        with suppress(FileExistsError):
            (directory / MODEL_FILE).symlink_to(f"../{MODEL_FILE}")
        return directory

    def commit(self) -> None:
        """Move the verified download to its final path (fsync, then rename)."""
        with self.partial.open("rb") as file:
            os.fsync(file.fileno())
        self.partial.replace(self.path)
        os.utime(self.directory)


class Cache:
    """A directory of entries whose total size stays below max_bytes (None: no limit)."""

    def __init__(self, directory: Path, max_bytes: int | None) -> None:
        self._directory = directory
        self._max_bytes = max_bytes

    @contextmanager
    def locked_entry(self, sha256: str, seconds: float) -> Iterator[Entry]:
        """Yield the entry of a model; no other process downloads into it meanwhile.

        Raises StoreError if another process keeps the lock for longer than `seconds`, or if the
        cache cannot be written.
        """
        entry = Entry(self._directory / sha256)
        deadline = time.monotonic() + seconds
        # Shared, so that a download never waits for servers that use the same model. It only
        # keeps the entry from being evicted.
        use_lock = _wait_for(lambda: _lock_entry(entry), entry, deadline)
        try:
            pull_lock = _wait_for(lambda: _lock(entry.pull_lock, fcntl.LOCK_EX), entry, deadline)
            try:
                yield entry
            finally:
                os.close(pull_lock)
        finally:
            os.close(use_lock)

    def evict_until_fits(self, entry: Entry, size_bytes: int) -> None:
        """Remove the least recently used entries until a model fits; never one in use.

        Raises StoreError if it fits neither into the limit nor on the disk. Called before the
        download, so that the error is not a full disk in the middle of it.
        """
        others = [other for other in self._entries() if other.directory != entry.directory]
        used = sum(other.size_bytes() for other in others)
        while (shortage := self._shortage(used, size_bytes)) and others:
            used -= others.pop(0).remove_if_unused()
        if shortage:
            raise StoreError(shortage)

    def _shortage(self, used: int, size_bytes: int) -> str | None:
        """Return why a model does not fit beside `used` bytes of other entries; None if it does."""
        if self._max_bytes is not None and used + size_bytes > self._max_bytes:
            return (
                f"MODEL_CACHE_MAX_BYTES: expected at least {used + size_bytes}, of which {used} "
                f"are in use, got {self._max_bytes}"
            )
        free = shutil.disk_usage(self._directory).free
        if size_bytes > free:
            return (
                f"MODEL_CACHE_DIR: {self._directory}: expected {size_bytes} bytes free, got {free}"
            )
        return None

    def _entries(self) -> list[Entry]:
        """Return the entries, least recently used first."""
        # The directory may contain files of other programs: never remove those.
        directories = [path for path in self._directory.iterdir() if _is_sha256(path.name)]
        return [Entry(path) for path in sorted(directories, key=lambda path: path.stat().st_mtime)]


def lock_for_use(artifact: Path) -> int:
    """Keep an artifact from being evicted while this process, or a child of it, lives.

    Returns the descriptor of the lock; closing it in every process that inherited it frees the
    lock. Raises StoreError if the artifact was evicted already.
    """
    lock = _lock(artifact.parent, fcntl.LOCK_SH)
    if lock is None or not (artifact / MODEL_FILE).is_file():
        raise StoreError(f"{artifact}: removed from the cache before it could be served")
    return lock


def _wait_for(lock: Callable[[], int | None], entry: Entry, deadline: float) -> int:
    """Call lock() until it returns a descriptor. Raises StoreError after the deadline."""
    while (descriptor := lock()) is None:
        if time.monotonic() > deadline:
            raise StoreError(
                f"{entry.directory}: another process still downloads this model. Check that "
                "process, or raise MODEL_PULL_SECONDS."
            )
        time.sleep(_LOCK_POLL_SECONDS)
    return descriptor


def _lock_entry(entry: Entry) -> int | None:
    """Create an entry if needed and return the descriptor of its shared lock.

    None if the entry is being evicted. Raises StoreError if the cache cannot be written.
    """
    try:
        entry.directory.mkdir(parents=True, exist_ok=True)
        lock = _lock(entry.directory, fcntl.LOCK_SH)
    except OSError as error:
        raise StoreError(
            f"MODEL_CACHE_DIR: cannot write to {entry.directory.parent}: {error.strerror}"
        ) from error
    if lock is None:
        return None
    try:
        # Between mkdir and flock another process may have evicted the folder. Then this lock
        # belongs to a folder without a name, and the caller has to try again.
        if os.path.samestat(os.fstat(lock), entry.directory.stat()):
            entry.pull_lock.touch()
            return lock
    except FileNotFoundError:
        pass
    os.close(lock)
    return None


def _lock(path: Path, kind: int) -> int | None:
    """Return a descriptor that locks a path until it is closed.

    None if another process has a conflicting lock, or if the path does not exist.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
