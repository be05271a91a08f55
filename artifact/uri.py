"""Parse the location of a model store or of an artifact: a path, `file://`, or a bucket's URI.

The only place that decides whether a location is local or remote. URIs are checked before any
network call. Only http:// and https:// may contain user:password@. Error messages show no
credentials.
"""

import re
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import unquote, unquote_to_bytes

from pydantic import BeforeValidator, TypeAdapter, ValidationError

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
_scheme_of = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://").match
_is_host = re.compile(r"(\[[^]@]+\]|[^:\s]+)(:\d*)?").fullmatch
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


def is_bucket(uri: str) -> bool:
    """Return whether a location is remote; paths and file:// URIs, valid or not, are local."""
    scheme = _scheme_of(uri)
    return scheme is not None and scheme[1].lower() != "file"


def local_path(uri: str | Path, setting: str, expected: str = "a path or file:///path") -> Path:
    """Return the path that a path or a file:// URI names.

    setting and expected: for the StoreError that every other URI raises.
    """
    text = str(uri)
    if not _scheme_of(text):
        return Path(text)
    if (path := file_path(text)) is None:
        raise StoreError(f"{setting}: expected {expected}, got {redact(text)}")
    return path


def file_path(uri: str) -> Path | None:
    """Return the path that file:///path names, percent-decoded; None for every other text."""
    scheme, _, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    if scheme.lower() != "file" or host not in ("", "localhost") or not slash:
        return None
    return None if "?" in path or "#" in path else Path(unquote(f"/{path}"))


def _decoded(value: Any) -> Any:
    return (file_path(value) or value) if isinstance(value, str) else value


# A field or option that holds a directory; accepts file:///path as well.
LocalPath = Annotated[Path, BeforeValidator(_decoded)]


@dataclass(frozen=True)
class StoreUri:
    """The URI of a remote store, split into address and credentials."""

    # The URI without credentials.
    address: str
    # The HTTP headers that authenticate a request.
    headers: dict[str, str] = field(repr=False)

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Split a URI. Raises StoreError with the reason and the supported alternative."""
        scheme, _, rest = uri.partition("://")
        authority, slash, path = rest.partition("/")
        userinfo, at, host = authority.rpartition("@")
        if scheme not in _SCHEMES:
            known = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
            raise _invalid(uri, f"expected a path, file:// or one of {known}, got {scheme}://")
        if "?" in rest or "#" in rest:
            raise _invalid(uri, _NO_QUERY)
        if scheme in CREDENTIALS and (at or ":" in host):
            raise no_credentials(uri, scheme)
        if not _is_host(host):
            raise _invalid(uri, _NO_HOST)
        return cls(f"{scheme}://{host}{slash}{path}", _basic(userinfo))


def no_credentials(uri: str, scheme: str) -> StoreError:
    """Return the error for user:password@ in the URI of a cloud's bucket."""
    variables = CREDENTIALS[scheme]
    return _invalid(uri, f"expected no credentials in it: set {variables} in the environment")


def _invalid(uri: str, reason: str) -> StoreError:
    return StoreError(f"{redact(uri)}: {reason}")


def _basic(userinfo: str) -> dict[str, str]:
    """Return the header for user:password, which may be percent-encoded (RFC 7617)."""
    if not userinfo:
        return {}
    user, _, password = userinfo.partition(":")
    credentials = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return {"Authorization": f"Basic {b64encode(credentials).decode()}"}


@dataclass(frozen=True)
class ArtifactUri:
    """The parts of `<store>/<name>/<version>` or `<store>/<name>@<alias>`."""

    # The whole URI and its store, redacted: for messages.
    uri: str
    store: str
    name: str
    # "" if the URI has an alias: the alias names the version, which may change.
    version: str
    alias: str | None
    # The store to open, with its credentials.
    address: str = field(repr=False)

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Split MODEL_URI. Raises StoreError that names the URI and what is expected."""
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
        # obstore resolves `..` to a folder outside of the store, in the same bucket.
        if "/../" in f"{parent}/" or "/./" in f"{parent}/":
            raise StoreError(f"MODEL_URI: {redact(uri)}: expected no '.' or '..' in it")
        address = uri.removesuffix(public.removeprefix(parent))
        return cls(redact(uri), redact(address), name, version, alias or None, address)

    @property
    def alias_path(self) -> str:
        """The file or object in the store that contains the alias's version."""
        return f"{self.name}/{ALIASES}/{self.alias}"

    def check_contract(self, contract: Contract) -> None:
        """Raise StoreError if a contract belongs to another artifact than the URI names.

        A server that reports one version while its URI names another cannot be rolled back.
        """
        expected = f"{self.name}/{self.version}"
        actual = f"{contract.name}/{contract.version}"
        if actual != expected:
            raise StoreError(
                f"MODEL_URI: {self.uri}: expected the artifact {expected}, got {actual}"
            )

    def check_version(self, text: str) -> str:
        """Return the content of the alias's file. Raises StoreError if it is not a version."""
        if not _fits(Version, text):
            raise StoreError(f"MODEL_URI: {self.uri}: expected a version in its file, got {text!r}")
        return text


def _without_credentials(uri: str) -> str:
    try:
        return StoreUri.parse(uri).address if is_bucket(uri) else uri
    except StoreError as error:
        raise StoreError(f"MODEL_URI: {error}") from None


def _fits(kind: Any, text: str) -> bool:
    """Return whether text is a valid name, version or alias. None of them can contain a slash."""
    try:
        TypeAdapter(kind).validate_python(text)
    except ValidationError:
        return False
    return True
