"""Run one piece of work in a forked process and return its result as bytes.

For work that must not happen in this process: obstore hangs in the children of a process that
has used it, and gunicorn's master forks workers for as long as it lives.
"""

import ctypes
import os
import select
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from serving import logs

# From <linux/prctl.h>: the signal that the kernel sends when the parent ends.
_PR_SET_PDEATHSIG = 1


class ForkedTask:
    """A forked process that runs one function; it is killed when its parent ends (on Linux)."""

    def __init__(self, work: Callable[[], bytes | None]) -> None:
        parent = os.getpid()
        self._read_end, write_end = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._read_end)
            _work_and_exit(work, write_end, parent)
        os.close(write_end)

    def result(self) -> bytes:
        """Wait for the process and return the result of the work; b"" if it failed."""
        with os.fdopen(self._read_end, "rb") as pipe:
            result = pipe.read()
        os.waitpid(self._pid, 0)
        return result

    def is_done(self) -> bool:
        """Return whether the process has ended.

        Not by waitpid: gunicorn's master reaps every child and may have taken its exit status.
        """
        # Only the child holds the write end, so the pipe becomes readable when the child ends.
        pipe = select.poll()
        pipe.register(self._read_end)
        return bool(pipe.poll(0))

    def kill(self) -> None:
        """Kill the process if it still runs."""
        if not self.is_done():
            os.kill(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """Free the pipe of a process that has ended, without reading its result."""
        os.close(self._read_end)


def _work_and_exit(work: Callable[[], bytes | None], write_end: int, parent: int) -> NoReturn:
    try:
        # Python's handlers were inherited from the parent, and they would not run while obstore
        # holds the main thread: a Python handler runs only between two bytecodes.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have ended before prctl; then nobody needs the result.
        if os.getppid() == parent:
            os.write(write_end, work() or b"")
    except BaseException:  # noqa: BLE001 - a panic of obstore is not an Exception
        logs.error("child_failed", traceback=traceback.format_exc())
    finally:
        # Never return into the parent's code: the child would become a second server.
        os._exit(0)
