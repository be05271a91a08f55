"""What MODEL_URI names: a store, a model in it, and a version or an alias.

Used by source.py and pull.py; the same for a folder and for a bucket.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from pydantic import TypeAdapter, ValidationError

from serving.contract import ALIASES, Alias, Contract, Name, Version
from serving.errors import StartupError


@dataclass(frozen=True)
class ArtifactUri:
    """`<store>/<name>/<version>` or `<store>/<name>@<alias>`, taken apart.

    version is "" where there is an alias: it is in the store, and may change.
    """

    uri: str
    store: str
    name: str
    version: str
    alias: str | None

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Take a URI apart. Raises StartupError that names it and what was expected.

        Before a store sees it: obstore takes `..` for a way out of the bucket's folder.
        """
        parent, _, last = uri.rstrip("/").rpartition("/")
        if "@" in last:
            name, _, alias = last.partition("@")
            checked = cls(uri, parent, name, "", _checked(Alias, alias, uri))
        else:
            parent, _, name = parent.rpartition("/")
            checked = cls(uri, parent, name, _checked(Version, last, uri), None)
        _checked(Name, checked.name, uri)
        if "/../" in f"{parent}/" or "/./" in f"{parent}/":
            raise StartupError(f"MODEL_URI: {uri}: expected no '.' or '..' in it")
        return checked

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
        """Return what an alias's file holds, if it is a version; raises StartupError."""
        return _checked(Version, text, self.uri)


def is_bucket(uri: str) -> bool:
    """Tell whether a URI names a bucket; everything else is a path of this machine."""
    return "://" in uri and not uri.startswith("file://")


def local_path(uri: str) -> Path:
    """Return the path that a path or a `file://` URI names; raises StartupError for others."""
    if "://" not in uri:
        return Path(uri)
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path:
        raise StartupError(f"MODEL_URI: expected a path or file:///path, got {uri}")
    return Path(unquote(parts.path))


def _checked(kind: Any, text: str, uri: str) -> str:
    """Return a name, version or alias that cannot lead out of the store."""
    try:
        checked: str = TypeAdapter(kind).validate_python(text)
    except ValidationError:
        expected = "<store>/<name>/<version> or <store>/<name>@<alias>"
        raise StartupError(f"MODEL_URI: {uri}: expected {expected}, got {text!r} in it") from None
    return checked
