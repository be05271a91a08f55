"""What the processes of one server share: made before the fork, gone with the last of them.

Used by server.py, app.py and reloader.py. A process that is killed leaves no lock behind.
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

# crc32 and length of what follows.
_HEAD = struct.Struct("<II")


class Shared(Generic[Value]):
    """One value of one type, as JSON of at most size_bytes."""

    def __init__(self, value: Value, *, size_bytes: int = 1 << 16) -> None:
        self._memory = mmap.mmap(-1, _HEAD.size + size_bytes)
        self._size_bytes = size_bytes
        self._decoder = msgspec.json.Decoder(type(value))
        self._last = value
        self.set(value)

    def set(self, value: Value) -> None:
        """Let every process see this value. Raises ValueError when it is too long."""
        content = msgspec.json.encode(value)
        if len(content) > self._size_bytes:
            raise ValueError(f"expected at most {self._size_bytes} bytes, got {len(content)}")
        whole = _HEAD.pack(zlib.crc32(content), len(content)) + content
        self._memory[: len(whole)] = whole

    def get(self) -> Value:
        """Return the value; while it is being set, the one this process got before."""
        crc32, length = _HEAD.unpack_from(self._memory)
        content = self._memory[_HEAD.size : _HEAD.size + min(length, self._size_bytes)]
        if zlib.crc32(content) == crc32:
            self._last = self._decoder.decode(content)
        return self._last


class Turn:
    """What one process of a server does at a time, in a `with`; the others wait."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(dir=shared_memory())  # noqa: SIM115 - for its life

    def __enter__(self) -> None:
        # By process, not by file: what is inherited is not shared.
        fcntl.lockf(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN)
