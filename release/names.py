"""Names of objects and tags that differ wherever the originals differ.

A name that had to be changed or shortened ends with two dashes and a hash of the original. No
unchanged name ends like that.
"""

import hashlib
import re

_HASH_DIGITS = 10
_HASHED = re.compile(rf"--[0-9a-f]{{{_HASH_DIGITS}}}$")


def with_hash(readable: str, original: str, max_length: int) -> str:
    """Return as much of a readable name as fits, and the hash of the original."""
    digest = hashlib.sha256(original.encode()).hexdigest()[:_HASH_DIGITS]
    return f"{readable[: max_length - len('--') - len(digest)]}--{digest}"


def is_hashed(name: str) -> bool:
    """Return whether a name ends as those of with_hash() do."""
    return _HASHED.search(name) is not None
