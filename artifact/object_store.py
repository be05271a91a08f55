"""Open a bucket by its URI: `s3://`, `gs://`, `az://`, `https://`, `http://`.

Credentials come from each cloud's standard chain and endpoints from its standard variables: this
project has no settings for them. `http(s)://user:password@` is sent as Basic authentication.
"""

from obstore import parse_scheme
from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from artifact.errors import StoreError
from artifact.redact import redact
from artifact.uri import StoreUri, no_credentials

CONNECT_SECONDS = 10
# Without any byte from the server. The whole download has no limit here: a large model takes
# long, a dead connection must not.
READ_SECONDS = 30
# obstore's names of the clouds that it also opens by an https:// URI of their own hosts.
_CLOUDS = {"s3": "s3", "gcs": "gs", "azure": "az"}


def open_bucket(
    uri: str, *, read_seconds: float = READ_SECONDS, max_retries: int = 0
) -> ObjectStore:
    """Open the bucket, and the folder in it, that a URI names. Makes no network call.

    max_retries: for one request. A pull retries by itself, because it can resume a download.
    Raises StoreError that names the URI if the URI is invalid.
    """
    parsed = StoreUri.parse(uri)
    try:
        cloud = _CLOUDS.get(parse_scheme(parsed.address))
        if cloud and parsed.headers:
            raise no_credentials(uri, cloud)
        return from_url(
            parsed.address,
            client_options={
                # Without it obstore rejects http://, in the URI and in the variable of an endpoint.
                "allow_http": True,
                "connect_timeout": f"{CONNECT_SECONDS}s",
                "read_timeout": f"{read_seconds}s",
                # obstore's default cancels the download of an object after 30 s.
                "timeout": "365days",
                # obstore does not send the URL's user:password. A redirect to another host or
                # port does not get this header.
                "default_headers": parsed.headers,
            },
            retry_config={"max_retries": max_retries},
        )
    except (BaseError, ValueError) as error:
        raise StoreError(f"{redact(uri)}: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """Return obstore's error message without the debug output below it, and without secrets."""
    return redact(str(error).partition("\n")[0])
