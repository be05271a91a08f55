"""Adapt the process to a container, where it may be PID 1 on a read-only file system.

Imported before every other module, so it imports nothing that takes time.
"""

import os
import signal


def exit_at_once_on_term() -> None:
    """End the process at once on TERM and INT until the server installs its own handlers.

    The kernel ignores a signal to PID 1 that has no handler, so a start could not be stopped.
    Ending at once is safe: no request has been accepted yet.
    """

    def end(*_: object) -> None:
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def shared_memory() -> str | None:
    """Return a folder in memory, writable in a read-only container too; None if it is missing."""
    path = "/dev/shm"  # noqa: S108 - each use creates a private file in it
    return path if os.access(path, os.W_OK) else None
