"""What is different for a process in a container: it may be PID 1, on a read-only file system.

Imported before anything else, so it imports nothing that takes time.
"""

import os
import signal


def exit_at_once_on_term() -> None:
    """Let TERM and INT end this process until the server takes them over: nothing is lost yet."""

    def end(*_: object) -> None:
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def shared_memory() -> str | None:
    """Return a folder in memory, there in a read-only container too; None without one."""
    path = "/dev/shm"  # noqa: S108 - each use makes a private folder in it
    return path if os.access(path, os.W_OK) else None
