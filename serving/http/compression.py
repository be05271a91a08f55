"""Content-Encoding, both ways: gzip and deflate in, gzip out, with a limit on what it unpacks to.

Used by endpoint.py.
"""

import gzip
import zlib

from serving.errors import RequestError

# Smaller answers would hardly get smaller: their head is as large.
_WORTH_BYTES = 1024
# Beyond it the event loop would be held up for a millisecond and more.
INLINE_BYTES = 1 << 15
_FASTEST = 1
# What is left is copied for each part.
_MOST_PARTS = 16
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
# What an answer that is compressed says of itself.
GZIP = ((b"content-encoding", b"gzip"), (b"vary", b"accept-encoding"))


def decoded(body: bytes, encoding: bytes, max_bytes: int) -> bytes:
    """Return what a body holds. encoding: the value of its Content-Encoding.

    Raises RequestError: 415 for another encoding than gzip and deflate, 413 once there are more
    than max_bytes, 400 for what is not encoded so.
    """
    name = encoding.strip().lower()
    if name in {b"", b"identity"}:
        return body
    if name not in {b"gzip", b"x-gzip", b"deflate"}:
        raise RequestError(
            415,
            f"Content-Encoding: expected gzip or deflate, got {encoding.decode('latin-1')}",
            {"accept-encoding": "gzip, deflate"},
        )
    pieces: list[bytes] = []
    size = 0
    while body:
        if len(pieces) == _MOST_PARTS:
            raise RequestError(400, f"body: expected at most {_MOST_PARTS} parts of gzip, got more")
        decompressor = zlib.decompressobj(_GZIP_OR_ZLIB)
        try:
            pieces.append(decompressor.decompress(body, max_bytes - size + 1))
        except zlib.error as error:
            raise RequestError(400, f"body: expected {name.decode()}: {error}") from None
        size += len(pieces[-1])
        if size > max_bytes:
            raise RequestError(413, f"body: expected at most {max_bytes} bytes unpacked, got more")
        if not decompressor.eof:
            raise RequestError(400, f"body: expected {name.decode()}, got the beginning of it")
        # A file of gzip may have several parts.
        body = decompressor.unused_data
    return b"".join(pieces)


def is_worth(body: bytes, accepted: bytes) -> bool:
    """Tell whether to compress an answer for who sent this Accept-Encoding."""
    return len(body) >= _WORTH_BYTES and b"gzip" in accepted and _accepts_gzip(accepted)


def compressed(body: bytes) -> bytes:
    """Return an answer compressed."""
    return gzip.compress(body, _FASTEST, mtime=0)


def _accepts_gzip(accepted: bytes) -> bool:
    for one in accepted.lower().split(b","):
        name, _, quality = one.partition(b";")
        if name.strip() == b"gzip":
            return quality.replace(b" ", b"").rstrip(b"0") not in {b"q=", b"q=0."}
    return False
