"""A forked process for one piece of work that must not happen in this one.

Used for what uses obstore, which hangs in the children of a process that has used it.
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

_PR_SET_PDEATHSIG = 1


class Child:
    """A process that does some work and ends with its parent, whatever ends that (on Linux)."""

    def __init__(self, work: Callable[[], bytes | None]) -> None:
        parent = os.getpid()
        self._reading, writing = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._reading)
            _work_and_end(work, writing, parent)
        os.close(writing)

    def result(self) -> bytes:
        """Wait for its end and return what the work returned; b"" if it was killed."""
        with os.fdopen(self._reading, "rb") as pipe:
            said = pipe.read()
        os.waitpid(self._pid, 0)
        return said

    def ended(self) -> bool:
        """Tell whether it has ended; gunicorn may have taken its exit status."""
        # Only the child can write: the pipe is readable at its end.
        pipe = select.poll()
        pipe.register(self._reading)
        return bool(pipe.poll(0))

    def kill(self) -> None:
        """End it at once."""
        if not self.ended():
            os.kill(self._pid, signal.SIGKILL)

    def forget(self) -> None:
        """Close what is left of one that has ended and whose result nobody wants."""
        os.close(self._reading)


def _work_and_end(work: Callable[[], bytes | None], writing: int, parent: int) -> NoReturn:
    try:
        # Python's own handlers would be the parent's, and obstore does not let them run.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            os.write(writing, work() or b"")
    except BaseException:  # noqa: BLE001 - a panic of obstore is no Exception
        logs.error("child_failed", traceback=traceback.format_exc())
    finally:
        os._exit(0)
