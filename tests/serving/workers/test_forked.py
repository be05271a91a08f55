"""Forked processes that run one piece of work."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from serving.workers.forked import ForkedTask
from tests.servers import wait_until


def wait_for_a_signal() -> bytes:
    signal.pause()
    return b"woken"


def test_a_task_returns_the_result_of_its_work() -> None:
    """Also a result that is larger than the buffer of a pipe."""
    assert ForkedTask(lambda: b"x" * 200_000).result() == b"x" * 200_000


def test_a_killed_task_returns_nothing() -> None:
    task = ForkedTask(wait_for_a_signal)
    assert not task.is_done()

    task.kill()

    wait_until(task.is_done)
    assert task.result() == b""


def test_failing_work_is_logged_and_ends_the_child() -> None:
    """A child that is forked from a server must never continue as a second server."""
    assert ForkedTask(lambda: bytes(1 // 0)).result() == b""


def test_a_task_is_killed_when_its_parent_is_killed() -> None:
    """An alias watcher without a server would download models that nobody serves."""
    program = (
        "import signal, os; from serving.workers.forked import ForkedTask; "
        "work = lambda: (print(os.getpid(), flush=True), signal.pause()) and None; "
        "ForkedTask(work); signal.pause()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert parent.stdout is not None
    with parent.stdout as output:
        stat = Path(f"/proc/{output.readline().strip()}/stat")

    parent.kill()
    parent.wait()

    wait_until(lambda: not stat.exists() or " Z " in stat.read_text())
