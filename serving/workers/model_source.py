"""Where a model is: all that a release mode tells the server.

Made by model_in_image and model_load, used by process.py, server.py and app.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from serving.workers.shared_value import Shared


class Current(msgspec.Struct, frozen=True):
    """The artifact that every worker of a server is to serve now, and why it is no newer one.

    trying: the version that is being pulled and verified. refused: one that could not be,
    for the reason `refusal`, refusals times in a row. unread: why the alias could not be
    read. moves, failures: how often in all following it succeeded and failed; moves_seconds:
    how long the successes took together. polled_at: when the alias was last read, in seconds
    since 1970.
    """

    version: str
    directory: str
    trying: str | None = None
    refused: str | None = None
    refusal: str | None = None
    refusals: int = 0
    unread: str | None = None
    moves: int = 0
    failures: int = 0
    moves_seconds: float = 0
    polled_at: float = 0

    @property
    def degraded(self) -> str | None:
        """Why it is not what the alias names, as far as is known; None when it is."""
        return self.unread or self.refusal

    def is_of(self, other: Self) -> bool:
        """Tell whether it is the same artifact."""
        return (self.version, self.directory) == (other.version, other.directory)


@dataclass(frozen=True)
class Source:
    """An artifact, and what learns of its successors.

    directory: waits until the artifact is there and returns where. Raises StartupError.
    follow: keeps what is current up to date, for as long as the process lives that it is
    given; None where the artifact stays the same. let_go: leaves to that process what
    keeps the artifact from being removed.
    """

    directory: Callable[[], Path]
    follow: Callable[[Shared[Current]], None] | None = None
    let_go: Callable[[], None] = lambda: None
