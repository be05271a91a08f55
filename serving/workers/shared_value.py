"""Share one value, or a lock, between the processes of a server.

Both are created before the fork and disappear with the last process. A killed process leaves
no lock behind: readers take no lock, and the kernel releases the file locks of a process that
ends.
"""

import fcntl
import mmap
import struct
import tempfile
import zlib
from typing import Generic, TypeVar

import msgspec

from serving.workers.container import shared_memory

Value = TypeVar("Value")

# crc32 and length of the JSON that follows.
_HEADER = struct.Struct("<II")


class SharedValue(Generic[Value]):
    """One value of one type in shared memory, as JSON of at most size_bytes.

    One process at a time may set it; any number may read it.
    """

    def __init__(self, value: Value, *, size_bytes: int = 1 << 16) -> None:
        self._memory = mmap.mmap(-1, _HEADER.size + size_bytes)
        self._size_bytes = size_bytes
        self._decoder = msgspec.json.Decoder(type(value))
        self._last = value
        self.set(value)

    def set(self, value: Value) -> None:
        """Publish the value to every process. Raises ValueError if it is too long."""
        content = msgspec.json.encode(value)
        if len(content) > self._size_bytes:
            raise ValueError(f"expected at most {self._size_bytes} bytes, got {len(content)}")
        block = _HEADER.pack(zlib.crc32(content), len(content)) + content
        self._memory[: len(block)] = block

    def get(self) -> Value:
        """Return the value; while another process sets it, the last value this process read."""
        # A lock would be held for ever by a writer that is killed. The checksum detects a value
        # that is only half written instead.
        crc32, length = _HEADER.unpack_from(self._memory)
        content = self._memory[_HEADER.size : _HEADER.size + min(length, self._size_bytes)]
        if zlib.crc32(content) == crc32:
            self._last = self._decoder.decode(content)
        return self._last


class InterProcessLock:
    """A lock that one process of a server holds at a time, for use in a `with`."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(dir=shared_memory())  # noqa: SIM115 - open as long as the lock

    def __enter__(self) -> None:
        # lockf, not flock: its locks belong to a process. With flock, forked processes that
        # inherit the file would hold the lock together.
        fcntl.lockf(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN)
