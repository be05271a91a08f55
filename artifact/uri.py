"""The URI of a model store: its accepted forms and its credentials.

A URI is checked before any network call. Only http:// and https:// may have user:password@.
Error messages show no credentials.
"""

import re
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, unquote_to_bytes

from pydantic import TypeAdapter, ValidationError

from artifact.contract import ALIASES, Alias, Contract, Name, Version
from artifact.errors import StoreError
from artifact.redact import redact

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
        """Split a URI. Raises StoreError with the reason and the supported alternative."""
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


def no_credentials(uri: str, scheme: str) -> StoreError:
    """Return the error for user:password@ in the URI of a cloud's bucket."""
    variables = CREDENTIALS[scheme]
    return _refused(uri, f"expected no credentials in it: set {variables} in the environment")


def _refused(uri: str, why: str) -> StoreError:
    return StoreError(f"{redact(uri)}: {why}")


def _basic(userinfo: str) -> dict[str, str]:
    """Return the header for user:password, which may be percent-encoded (RFC 7617)."""
    if not userinfo:
        return {}
    user, _, password = userinfo.partition(":")
    credentials = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return {"Authorization": f"Basic {b64encode(credentials).decode()}"}


@dataclass(frozen=True)
class ArtifactUri:
    """`<store>/<name>/<version>` or `<store>/<name>@<alias>`, taken apart.

    uri, store: redacted, for messages. version: "" if there is an alias, which names the
    version and may change. address: the store to open, with its credentials.
    """

    uri: str
    store: str
    name: str
    version: str
    alias: str | None
    address: str = field(repr=False)

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Take a URI apart. Raises StoreError that names the URI and what is expected.

        Checked before a store is opened: for obstore `..` leads out of the bucket's folder.
        """
        uri = uri.rstrip("/")
        public = _without_credentials(uri)
        parent, _, last = public.rpartition("/")
        name, at, alias = last.partition("@")
        version = ""
        if not at:
            (parent, _, name), version = parent.rpartition("/"), last
        if not (_fits(Name, name) and (_fits(Alias, alias) if at else _fits(Version, version))):
            expected = "<store>/<name>/<version> or <store>/<name>@<alias>"
            raise StoreError(f"MODEL_URI: expected {expected}, got {redact(uri)}")
        if "/../" in f"{parent}/" or "/./" in f"{parent}/":
            raise StoreError(f"MODEL_URI: {redact(uri)}: expected no '.' or '..' in it")
        address = uri.removesuffix(public.removeprefix(parent))
        return cls(redact(uri), redact(address), name, version, alias or None, address)

    @property
    def alias_path(self) -> str:
        """Where the store keeps the version that the alias names."""
        return f"{self.name}/{ALIASES}/{self.alias}"

    def refuse_another(self, contract: Contract) -> None:
        """Raise StoreError when a contract is of another artifact than the URI says.

        A server that says one version while its URI says another cannot be rolled back.
        """
        asked, came = f"{self.name}/{self.version}", f"{contract.name}/{contract.version}"
        if came != asked:
            raise StoreError(f"MODEL_URI: {self.uri}: expected the artifact {asked}, got {came}")

    def checked_version(self, text: str) -> str:
        """Return the content of the alias's file. Raises StoreError if it is not a version."""
        if not _fits(Version, text):
            raise StoreError(f"MODEL_URI: {self.uri}: expected a version in its file, got {text!r}")
        return text


def is_bucket(uri: str) -> bool:
    """Tell whether a URI names a bucket; everything else is a path of this machine."""
    return "://" in uri and not uri.startswith("file://")


def local_path(uri: str) -> Path:
    """Return the path that a path or a `file://` URI names; raises StoreError for others."""
    if "://" not in uri:
        return Path(uri)
    if (path := file_path(uri)) is None:
        raise StoreError(f"MODEL_URI: expected a path or file:///path, got {redact(uri)}")
    return path


def _without_credentials(uri: str) -> str:
    try:
        return StoreUri.parse(uri).address if is_bucket(uri) else uri
    except StoreError as error:
        raise StoreError(f"MODEL_URI: {error}") from None


def _fits(kind: Any, text: str) -> bool:
    """Return whether text is a name, version or alias, none of which leads out of the store."""
    try:
        TypeAdapter(kind).validate_python(text)
    except ValidationError:
        return False
    return True
