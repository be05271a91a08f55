"""HTTP compression: decompress request bodies (gzip, deflate) and compress responses (gzip).

The decompressed size is limited, so a small body cannot fill the memory.
"""

import gzip
import zlib

from serving.errors import RequestError

# Below this size compression saves little: the response's head has about the same size.
_MIN_BYTES = 1024
# Compressing more than this takes a millisecond or longer, which would block the event loop.
MAX_INLINE_BYTES = 1 << 15
# zlib's fastest level: small responses are compressed on the event loop.
_LEVEL = 1
# zlib copies the rest of the body for every gzip member. Without a limit, a body of many tiny
# members would take quadratic time.
_MAX_MEMBERS = 16
# zlib detects the header: gzip, or zlib as "deflate" has it.
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
# Headers of a compressed response.
GZIP_HEADERS = ((b"content-encoding", b"gzip"), (b"vary", b"accept-encoding"))


def decompress(body: bytes, encoding: bytes, max_bytes: int) -> bytes:
    """Return the decompressed body. encoding: the value of the Content-Encoding header.

    Raises RequestError: 415 if the encoding is not supported, 413 if the decompressed body is
    larger than max_bytes, 400 if the body is not valid.
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
    # A gzip file may consist of several members, one after the other.
    while body:
        if len(pieces) == _MAX_MEMBERS:
            raise RequestError(
                400, f"body: expected at most {_MAX_MEMBERS} members of gzip, got more"
            )
        decompressor = zlib.decompressobj(_GZIP_OR_ZLIB)
        try:
            # One byte more than allowed shows that the limit is exceeded.
            pieces.append(decompressor.decompress(body, max_bytes - size + 1))
        except zlib.error as error:
            raise RequestError(400, f"body: expected {name.decode()}: {error}") from None
        size += len(pieces[-1])
        if size > max_bytes:
            raise RequestError(
                413, f"body: expected at most {max_bytes} bytes after decompression, got more"
            )
        if not decompressor.eof:
            raise RequestError(400, f"body: expected {name.decode()}, got incomplete data")
        body = decompressor.unused_data
    return b"".join(pieces)


def should_compress(body: bytes, accept_encoding: bytes) -> bool:
    """Tell whether a response is large enough, and whether the client accepts gzip."""
    # The cheap checks first: this runs for every response whose client sends the header.
    return len(body) >= _MIN_BYTES and b"gzip" in accept_encoding and _accepts_gzip(accept_encoding)


def compress(body: bytes) -> bytes:
    """Return a body, compressed with gzip."""
    return gzip.compress(body, _LEVEL, mtime=0)


def _accepts_gzip(accept_encoding: bytes) -> bool:
    """Tell whether the header lists gzip with a quality above 0."""
    for item in accept_encoding.lower().split(b","):
        name, _, quality = item.partition(b";")
        if name.strip() == b"gzip":
            return quality.replace(b" ", b"").rstrip(b"0") not in {b"q=", b"q=0."}
    return False
