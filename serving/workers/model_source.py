"""Describe where a model comes from: the interface between a release mode and the server.

The server sees a verified local directory and, if the model may change, a value in shared
memory that names the version to serve.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from serving.workers.shared_value import SharedValue


class ServedVersion(msgspec.Struct, frozen=True):
    """The artifact that every worker of a server has to serve, and the state of its alias."""

    version: str
    directory: str
    # The version that is being pulled and verified.
    candidate: str | None = None
    # The version of the alias that could not be served, and why.
    rejected: str | None = None
    rejection_reason: str | None = None
    # How often in a row it was rejected.
    rejections: int = 0
    # Why the alias could not be read.
    alias_error: str | None = None
    # Successful and failed changes of the version since the start of the server.
    reloads: int = 0
    reload_failures: int = 0
    # The sum of the durations of the successful ones.
    reload_seconds: float = 0
    # When the alias was last read, in seconds since 1970.
    polled_at: float = 0

    @property
    def degraded(self) -> str | None:
        """Why the server does not serve the version that the alias names; None if it does."""
        return self.alias_error or self.rejection_reason

    def is_same_artifact(self, other: Self) -> bool:
        """Return whether both are one artifact; the state of the alias may differ."""
        return (self.version, self.directory) == (other.version, other.directory)


@dataclass(frozen=True)
class ModelSource:
    """An artifact, and the process that watches for its successors if there may be any."""

    # Waits until the artifact is complete and returns its directory. Raises StartupError.
    directory: Callable[[], Path]
    # Keeps the shared value up to date; runs in a process of its own and never returns. None if
    # the artifact never changes.
    watch: Callable[[SharedValue[ServedVersion]], None] | None = None
    # Frees the lock that protects the artifact in the cache: the watching process has its own.
    release: Callable[[], None] = lambda: None
