"""Shorten names of objects and tags without collisions: different originals stay different.

A name that had to be changed or shortened ends with two dashes and a hash of the original. Names
that are used unchanged never end like that.
"""

import hashlib
import re

_HASH_DIGITS = 10
_HASHED = re.compile(rf"--[0-9a-f]{{{_HASH_DIGITS}}}$")


def with_hash(readable: str, original: str, max_length: int) -> str:
    """Return the readable name, cut so that the hash of the original fits behind it."""
    digest = hashlib.sha256(original.encode()).hexdigest()[:_HASH_DIGITS]
    return f"{readable[: max_length - len('--') - len(digest)]}--{digest}"


def is_hashed(name: str) -> bool:
    """Return whether a name ends with a hash, as with_hash() writes it."""
    return _HASHED.search(name) is not None
