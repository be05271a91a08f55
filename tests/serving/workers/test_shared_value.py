"""Values and locks that the processes of a server share."""

import os
import signal
import time
from pathlib import Path

import pytest

from serving.workers.shared_value import InterProcessLock, SharedValue
from tests.servers import wait_until


def test_a_parent_gets_the_value_that_its_child_set() -> None:
    shared = SharedValue("before")
    child = os.fork()
    if child == 0:
        shared.set("after")
        os._exit(0)
    os.waitpid(child, 0)

    assert shared.get() == "after"


def test_a_value_is_never_read_half_written() -> None:
    """A worker must not open half of one path and half of another."""
    values = ["a" * 60_000, "b" * 50_000]
    shared = SharedValue(values[0])
    child = os.fork()
    if child == 0:
        try:
            # Until it is killed: the parent decides when it has read enough.
            while True:
                for value in values:
                    shared.set(value)
        finally:
            os._exit(0)

    seen: set[str] = set()
    reads = 0

    def both_values_were_read_many_times() -> bool:
        nonlocal reads
        seen.add(shared.get())
        reads += 1
        return reads >= 300 and len(seen) == 2

    try:
        wait_until(both_values_were_read_many_times)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    assert seen == set(values)


def test_a_value_that_is_too_long_is_rejected() -> None:
    shared = SharedValue("", size_bytes=10)

    with pytest.raises(ValueError, match="expected at most 10 bytes, got 12"):
        shared.set("0123456789")

    assert shared.get() == ""


def test_a_lock_is_held_by_one_process_and_released_when_that_is_killed(tmp_path: Path) -> None:
    """A killed worker must not keep the others from reloading."""
    lock, is_held = InterProcessLock(), tmp_path / "is_held"
    child = os.fork()
    if child == 0:
        with lock:
            is_held.touch()
            signal.pause()
        os._exit(0)
    wait_until(is_held.exists)
    waiting = os.fork()
    if waiting == 0:
        with lock:
            os._exit(0)

    time.sleep(0.05)
    assert os.waitpid(waiting, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

    assert os.waitpid(waiting, 0) == (waiting, 0)
    lock._file.close()  # noqa: SLF001 - a server keeps it until it ends
