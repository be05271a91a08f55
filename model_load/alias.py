"""An alias in a model store: which version it names now, and the artifact of a version.

Used by source.py at the start and by follower.py from then on.
"""

import os
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Protocol

from artifact.contract import ContractMismatch, read_contract
from artifact.errors import StoreError
from artifact.redact import redact
from artifact.uri import ArtifactUri, local_path
from model_load.cache import Cache, hold


class Alias(Protocol):
    """An alias in any store, which `uri` names.

    Whatever is asked may raise StoreError and ContractMismatch.
    """

    uri: ArtifactUri

    def version(self) -> str:
        """Return the version that it names now."""

    def artifact(self, version: str) -> Path:
        """Return the directory of one of its model's versions, pulled if need be."""

    def hold(self, directory: Path) -> AbstractContextManager[object]:
        """Keep such a directory from being removed by others, within a `with`."""


class LocalAlias:
    """An alias in a folder, whose artifacts are opened in place."""

    def __init__(self, uri: str) -> None:
        self._shown = redact(uri)
        self.uri = ArtifactUri.parse(str(local_path(uri, "MODEL_URI")))
        self._store = Path(self.uri.address)

    def version(self) -> str:
        """Return the version that the alias's file holds."""
        file = self._store / self.uri.alias_path
        try:
            text = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise StoreError(f"MODEL_URI: {self._shown}: no such alias: {file}: {reason}") from None
        return self.uri.check_version(text)

    def artifact(self, version: str) -> Path:
        """Return the folder of a version."""
        return _in_place(self._shown, self._store / self.uri.name / version)

    def hold(self, _: Path) -> AbstractContextManager[object]:
        """Do nothing: nobody's cache holds it."""
        return nullcontext()


class BucketAlias:
    """An alias in a bucket, whose artifacts are pulled into a cache.

    read_seconds: time to read the alias, and pull_seconds: to pull an artifact, each with
    its retries. Not for a process that forks: it uses obstore.
    """

    def __init__(self, uri: str, cache: Cache, *, read_seconds: float, pull_seconds: float) -> None:
        from model_load.pull import Deadline, Pull  # noqa: PLC0415 - never in a parent

        self._cache = cache
        self._read_seconds = read_seconds
        self._pull_seconds = pull_seconds
        # Two for all times: their connections and credentials are kept.
        self.uri = ArtifactUri.parse(uri)
        self._reader = Pull(self.uri, Deadline(read_seconds, read_seconds))
        self._puller = Pull(self.uri, Deadline(pull_seconds))

    def version(self) -> str:
        """Return the version that the alias's object holds."""
        return self._reader.within(self._read_seconds).version()

    def artifact(self, version: str) -> Path:
        """Return the directory of a version in the cache."""
        return self._puller.within(self._pull_seconds).into(self._cache, version)

    def hold(self, directory: Path) -> AbstractContextManager[object]:
        """Keep it in the cache."""
        holding = ExitStack()
        holding.callback(os.close, hold(directory))
        return holding


def local_artifact(uri: str) -> Path:
    """Return the directory that a path or a `file://` URI names, through its alias if it has one.

    Raises StoreError that names the URI and what was expected of it.
    """
    path = local_path(uri, "MODEL_URI")
    if "@" not in path.name:
        return _in_place(redact(uri), path)
    alias = LocalAlias(uri)
    return alias.artifact(alias.version())


def _in_place(uri: str, directory: Path) -> Path:
    """Return a directory. Raises StoreError if its contract belongs to another artifact.

    uri: redacted, for the message.
    """
    with suppress(ContractMismatch):  # reported later, with all other differences
        name, version = directory.absolute().parent.name, directory.name
        wanted = ArtifactUri(uri, "", name, version, alias=None, address="")
        wanted.check_contract(read_contract(directory))
    return directory
