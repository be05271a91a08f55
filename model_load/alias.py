"""Resolve an alias of a model store: its current version, and the directory of a version.

A local store is used in place. From a bucket, versions are downloaded into the cache.
"""

import os
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Protocol

from artifact.contract import ContractMismatch, read_contract
from artifact.errors import StoreError
from artifact.redact import redact
from artifact.uri import ArtifactUri, local_path
from model_load.cache import Cache, lock_for_use


class Alias(Protocol):
    """An alias in any store. Its methods may raise StoreError and ContractMismatch."""

    uri: ArtifactUri

    def version(self) -> str:
        """Return the version that the alias names now."""

    def artifact(self, version: str) -> Path:
        """Return the directory of a version of the model; download it if needed."""

    def lock_for_use(self, directory: Path) -> AbstractContextManager[object]:
        """Return a context manager; within it no other process removes the directory."""


class LocalAlias:
    """An alias in a local store."""

    def __init__(self, uri: str) -> None:
        self._redacted = redact(uri)
        self.uri = ArtifactUri.parse(str(local_path(uri, "MODEL_URI")))
        self._store = Path(self.uri.address)

    def version(self) -> str:
        """Return the content of the alias's file."""
        file = self._store / self.uri.alias_path
        try:
            text = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise StoreError(
                f"MODEL_URI: {self._redacted}: no such alias: {file}: {reason}"
            ) from None
        return self.uri.check_version(text)

    def artifact(self, version: str) -> Path:
        """Return the directory of a version in the store."""
        return _checked(self._redacted, self._store / self.uri.name / version)

    def lock_for_use(self, _: Path) -> AbstractContextManager[object]:
        """Do nothing: nothing is ever evicted from a store."""
        return nullcontext()


class BucketAlias:
    """An alias in a bucket, whose versions are downloaded into the cache.

    read_seconds: timeout of reading the alias. pull_seconds: timeout of a download. Both include
    retries. Uses obstore: never create one in a process that forks.
    """

    def __init__(self, uri: str, cache: Cache, *, read_seconds: float, pull_seconds: float) -> None:
        from model_load.pull import Deadline, Pull  # noqa: PLC0415 - never in a process that forks

        self._cache = cache
        self._read_seconds = read_seconds
        self._pull_seconds = pull_seconds
        self.uri = ArtifactUri.parse(uri)
        # Created once: they keep connections and credentials between polls.
        self._reader = Pull(self.uri, Deadline(read_seconds, read_seconds))
        self._puller = Pull(self.uri, Deadline(pull_seconds))

    def version(self) -> str:
        """Return the content of the alias's object."""
        return self._reader.with_timeout(self._read_seconds).version()

    def artifact(self, version: str) -> Path:
        """Return the directory of a version in the cache."""
        pull = self._puller.with_timeout(self._pull_seconds)
        return pull.download_to_cache(self._cache, version)

    def lock_for_use(self, directory: Path) -> AbstractContextManager[object]:
        """Keep the directory from being evicted."""
        locks = ExitStack()
        locks.callback(os.close, lock_for_use(directory))
        return locks


def local_artifact(uri: str) -> Path:
    """Return the directory of a version in a local store; resolves an alias.

    uri: a path or a file:// URI. Raises StoreError that names the URI and what was expected.
    """
    path = local_path(uri, "MODEL_URI")
    if "@" not in path.name:
        return _checked(redact(uri), path)
    alias = LocalAlias(uri)
    return alias.artifact(alias.version())


def _checked(redacted_uri: str, directory: Path) -> Path:
    """Return a directory. Raises StoreError if its contract belongs to another artifact."""
    # An invalid contract is reported later, together with all other differences.
    with suppress(ContractMismatch):
        name, version = directory.absolute().parent.name, directory.name
        expected = ArtifactUri(redacted_uri, "", name, version, alias=None, address="")
        expected.check_contract(read_contract(directory))
    return directory
