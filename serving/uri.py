"""The URI of a model store: its accepted forms and its credentials.

A URI is checked before any network call. Only http:// and https:// may have user:password@.
Error messages show no credentials.
"""

import re
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import unquote, unquote_to_bytes

from serving.errors import StartupError
from serving.redact import redact

# The environment variables that open a bucket, by scheme.
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
}
_SCHEMES = (*CREDENTIALS, "https", "http")
_IS_HOST = re.compile(r"(\[[^]@]+\]|[^:\s]+)(:\d*)?").fullmatch
_NO_QUERY = (
    "expected no ? and no #. A presigned URL opens one object and an artifact is two: use s3:// "
    f"with {CREDENTIALS['s3']}. For a shared access signature of Azure, use az:// with "
    "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_SAS_TOKEN. In a password, write ? as %3F and # "
    "as %23"
)
_NO_HOST = (
    "expected a host, host:port or bucket after ://. In a user name and a password, write / as "
    "%2F, : as %3A and @ as %40"
)


@dataclass(frozen=True)
class StoreUri:
    """A store's URI, split into address and credentials.

    address: the URI without credentials. headers: the headers that authenticate a request.
    """

    address: str
    headers: dict[str, str] = field(repr=False)

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Split a URI. Raises StartupError with the reason and the supported alternative."""
        scheme, _, rest = uri.partition("://")
        authority, slash, path = rest.partition("/")
        userinfo, at, host = authority.rpartition("@")
        if scheme not in _SCHEMES:
            known = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
            raise _refused(uri, f"expected a path, file:// or one of {known}, got {scheme}://")
        if "?" in rest or "#" in rest:
            raise _refused(uri, _NO_QUERY)
        if scheme in CREDENTIALS and (at or ":" in host):
            raise no_credentials(uri, scheme)
        if not _IS_HOST(host):
            raise _refused(uri, _NO_HOST)
        return cls(f"{scheme}://{host}{slash}{path}", _basic(userinfo))


def file_path(uri: str) -> Path | None:
    """Return the path that file:///path names, percent-decoded; None for every other URI."""
    scheme, _, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    if scheme.lower() != "file" or host not in ("", "localhost") or not slash:
        return None
    return None if "?" in path or "#" in path else Path(unquote(f"/{path}"))


def no_credentials(uri: str, scheme: str) -> StartupError:
    """Return the error for user:password@ in the URI of a cloud's bucket."""
    variables = CREDENTIALS[scheme]
    return _refused(uri, f"expected no credentials in it: set {variables} in the environment")


def _refused(uri: str, why: str) -> StartupError:
    return StartupError(f"{redact(uri)}: {why}")


def _basic(userinfo: str) -> dict[str, str]:
    """Return the header for user:password, which may be percent-encoded (RFC 7617)."""
    if not userinfo:
        return {}
    user, _, password = userinfo.partition(":")
    credentials = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return {"Authorization": f"Basic {b64encode(credentials).decode()}"}
