"""Models on this machine's disk, by sha256: shared by processes, kept over restarts.

Used by pull.py. An entry is `<sha256>/model.onnx`; it appears by a rename once its content
is right. Who pulls or serves a model shares the lock of its folder, which only a removal
takes alone; a second lock keeps two pulls apart.
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

_LOCK_POLL_SECONDS = 0.1
_IS_SHA256 = re.compile("[0-9a-f]{64}").fullmatch


@dataclass(frozen=True)
class Entry:
    """The place of one model, which may not be there yet; in a folder named by its sha256."""

    directory: Path

    @property
    def path(self) -> Path:
        """Where the model is once it is right."""
        return self.directory / MODEL_FILE

    @property
    def pull_lock(self) -> Path:
        """What a pull locks, so that two of them do not meet."""
        return self.directory / "pull.lock"

    @property
    def partial(self) -> Path:
        """Where it grows until then."""
        return self.directory / f"{MODEL_FILE}.partial"

    def is_right(self, model: ModelFile) -> bool:
        """Tell whether the model is there, whole; a corrupted one is removed."""
        if not self.path.is_file():
            return False
        if self.path.stat().st_size == model.size_bytes and sha256_of(self.path) == model.sha256:
            os.utime(self.directory)
            return True
        self.path.unlink()
        return False

    def size_bytes(self) -> int:
        """Return what it takes on disk."""
        return sum(path.lstat().st_size for path in (self.path, self.partial) if path.is_file())

    def remove_if_unused(self) -> int:
        """Remove it unless a process holds it; return the bytes that frees."""
        held = _lock(self.directory, fcntl.LOCK_EX)
        if held is None:
            return 0
        try:
            freed = self.size_bytes()
            shutil.rmtree(self.directory)
        finally:
            os.close(held)
        return freed

    def artifact(self, contract: bytes) -> Path:
        """Return a directory as a server takes it: this contract beside this model."""
        directory = self.directory / hashlib.sha256(contract).hexdigest()
        directory.mkdir(exist_ok=True)
        beside = directory / f"{CONTRACT_FILE}.partial"
        beside.write_bytes(contract)
        beside.replace(directory / CONTRACT_FILE)
        with suppress(FileExistsError):
            (directory / MODEL_FILE).symlink_to(f"../{MODEL_FILE}")
        return directory

    def keep(self) -> None:
        """Make a download, whose sha256 is right, the model."""
        with self.partial.open("rb") as file:
            os.fsync(file.fileno())
        self.partial.replace(self.path)
        os.utime(self.directory)


class Cache:
    """A directory of entries that together stay below max_bytes, if that is given."""

    def __init__(self, directory: Path, max_bytes: int | None) -> None:
        self._directory = directory
        self._max_bytes = max_bytes

    @contextmanager
    def alone_with(self, sha256: str, seconds: float) -> Iterator[Entry]:
        """Hold the entry of a model, alone among all processes.

        Raises StoreError when another one has not let go of it in time, or when the
        cache cannot be written.
        """
        entry = Entry(self._directory / sha256)
        deadline = time.monotonic() + seconds
        # Shared with who serves it: only its removal has to wait.
        in_use = _in_time(lambda: _lock_entry(entry), entry, deadline)
        try:
            alone = _in_time(lambda: _lock(entry.pull_lock, fcntl.LOCK_EX), entry, deadline)
            try:
                yield entry
            finally:
                os.close(alone)
        finally:
            os.close(in_use)

    def make_room(self, entry: Entry, size_bytes: int) -> None:
        """Remove what was longest unused until a model fits; never what is served.

        Raises StoreError when it fits neither the limit nor the disk: said before the
        download, not by a full disk in the middle of it.
        """
        others = [other for other in self._entries() if other.directory != entry.directory]
        used = sum(other.size_bytes() for other in others)
        while (lacking := self._lacking(used, size_bytes)) and others:
            used -= others.pop(0).remove_if_unused()
        if lacking:
            raise StoreError(lacking)

    def _lacking(self, used: int, size_bytes: int) -> str | None:
        """Return what keeps a model from fitting beside the bytes that others use, if anything."""
        if self._max_bytes is not None and used + size_bytes > self._max_bytes:
            return (
                f"MODEL_CACHE_MAX_BYTES: expected at least {used + size_bytes}, {used} of it "
                f"being served, got {self._max_bytes}"
            )
        free = shutil.disk_usage(self._directory).free
        if size_bytes > free:
            return (
                f"MODEL_CACHE_DIR: {self._directory}: expected {size_bytes} bytes free, got {free}"
            )
        return None

    def _entries(self) -> list[Entry]:
        """Return the entries, longest unused first."""
        # Whatever else is in that directory is not ours to remove.
        directories = [path for path in self._directory.iterdir() if _IS_SHA256(path.name)]
        return [Entry(path) for path in sorted(directories, key=lambda path: path.stat().st_mtime)]


def hold(artifact: Path) -> int:
    """Keep an artifact in its cache for as long as this process, or a child of it, lives.

    Returns the descriptor that holds it. Raises StoreError when it is gone already.
    """
    held = _lock(artifact.parent, fcntl.LOCK_SH)
    if held is None or not (artifact / MODEL_FILE).is_file():
        raise StoreError(f"{artifact}: removed from the cache before it could be served")
    return held


def _in_time(lock: Callable[[], int | None], entry: Entry, deadline: float) -> int:
    """Return what lock() returns once that is a descriptor; raises StoreError when late."""
    while (held := lock()) is None:
        if time.monotonic() > deadline:
            raise StoreError(f"{entry.directory}: another process has not let go of it in time")
        time.sleep(_LOCK_POLL_SECONDS)
    return held


def _lock_entry(entry: Entry) -> int | None:
    """Return a descriptor that keeps an entry, made if need be, from being removed; or None."""
    try:
        entry.directory.mkdir(parents=True, exist_ok=True)
        held = _lock(entry.directory, fcntl.LOCK_SH)
    except OSError as error:
        raise StoreError(
            f"MODEL_CACHE_DIR: cannot write to {entry.directory.parent}: {error.strerror}"
        ) from error
    if held is None:
        return None
    try:
        if os.path.samestat(os.fstat(held), entry.directory.stat()):
            entry.pull_lock.touch()
            return held
    except FileNotFoundError:
        pass  # removed between its making and its locking
    os.close(held)
    return None


def _lock(path: Path, kind: int) -> int | None:
    """Return a descriptor that locks a path while it is open; None if others do, or it is gone."""
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
