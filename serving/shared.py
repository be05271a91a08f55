"""A value that every process of one server sees: made before the fork, set by one, got by all.

Used by server.py and app.py. It lies in memory, not in a file: nothing is left behind, and
a process that is killed leaves no lock.
"""

import mmap
import struct
import zlib
from typing import Generic, TypeVar

import msgspec

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
