"""What MODEL_URI names: a store, a model in it, and a version or an alias.

Used by source.py and pull.py; the same for a folder and for a bucket.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from serving.contract import ALIASES, Alias, Contract, Name, Version
from serving.errors import StartupError
from serving.redact import redact
from serving.uri import StoreUri, file_path


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
        """Take a URI apart. Raises StartupError that names the URI and what is expected.

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
            raise StartupError(f"MODEL_URI: expected {expected}, got {redact(uri)}")
        if "/../" in f"{parent}/" or "/./" in f"{parent}/":
            raise StartupError(f"MODEL_URI: {redact(uri)}: expected no '.' or '..' in it")
        address = uri.removesuffix(public.removeprefix(parent))
        return cls(redact(uri), redact(address), name, version, alias or None, address)

    @property
    def alias_path(self) -> str:
        """Where the store keeps the version that the alias names."""
        return f"{self.name}/{ALIASES}/{self.alias}"

    def refuse_another(self, contract: Contract) -> None:
        """Raise StartupError when a contract is of another artifact than the URI says.

        A server that says one version while its URI says another cannot be rolled back.
        """
        asked, came = f"{self.name}/{self.version}", f"{contract.name}/{contract.version}"
        if came != asked:
            raise StartupError(f"MODEL_URI: {self.uri}: expected the artifact {asked}, got {came}")

    def checked_version(self, text: str) -> str:
        """Return the content of the alias's file. Raises StartupError if it is not a version."""
        if not _fits(Version, text):
            raise StartupError(
                f"MODEL_URI: {self.uri}: expected a version in its file, got {text!r}"
            )
        return text


def is_bucket(uri: str) -> bool:
    """Tell whether a URI names a bucket; everything else is a path of this machine."""
    return "://" in uri and not uri.startswith("file://")


def local_path(uri: str) -> Path:
    """Return the path that a path or a `file://` URI names; raises StartupError for others."""
    if "://" not in uri:
        return Path(uri)
    if (path := file_path(uri)) is None:
        raise StartupError(f"MODEL_URI: expected a path or file:///path, got {redact(uri)}")
    return path


def _without_credentials(uri: str) -> str:
    try:
        return StoreUri.parse(uri).address if is_bucket(uri) else uri
    except StartupError as error:
        raise StartupError(f"MODEL_URI: {error}") from None


def _fits(kind: Any, text: str) -> bool:
    """Return whether text is a name, version or alias, none of which leads out of the store."""
    try:
        TypeAdapter(kind).validate_python(text)
    except ValidationError:
        return False
    return True
