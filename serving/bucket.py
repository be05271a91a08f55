"""A model store in a bucket, opened by its URI: `s3://`, `gs://`, `az://`, `https://`, `http://`.

Used by model_load to pull and by training to publish. Credentials come from each cloud's
standard chain and endpoints from its standard variables; nothing is configured here twice.
"""

from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from serving.errors import StartupError

SCHEMES = ("s3", "gs", "az", "https", "http")
CONNECT_SECONDS = 10
# Of silence, not in all: a large model may take long, a dead connection must not.
READ_SECONDS = 30


def open_bucket(
    uri: str, *, read_seconds: float = READ_SECONDS, max_retries: int = 0
) -> ObjectStore:
    """Open the bucket, and the folder in it, that a URI names; asks nothing of it yet.

    max_retries: of one request. Who pulls retries by itself: it knows where to go on.
    Raises StartupError that names the URI when no store can be meant by it.
    """
    scheme = uri.partition("://")[0]
    if scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise StartupError(f"{uri}: expected a path, file:// or one of {known}, got {scheme}://")
    try:
        return from_url(
            uri,
            client_options={
                # Plain http is for who writes it, in the URI or in an endpoint's variable.
                "allow_http": True,
                "connect_timeout": f"{CONNECT_SECONDS}s",
                "read_timeout": f"{read_seconds}s",
                # By default it ends a whole object after 30 s.
                "timeout": "365days",
            },
            retry_config={"max_retries": max_retries},
        )
    except (BaseError, ValueError) as error:
        raise StartupError(f"{uri}: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """Return what obstore says of an error, without the structure it prints below."""
    return str(error).partition("\n")[0]
