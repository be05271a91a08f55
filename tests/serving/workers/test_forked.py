"""Processes for one piece of work."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from serving.workers.forked import Child
from tests.servers import wait_until


def wait_for_ever() -> bytes:
    signal.pause()
    return b"woken"


def test_a_child_returns_what_its_work_returned() -> None:
    assert Child(lambda: b"x" * 200_000).result() == b"x" * 200_000


def test_a_killed_child_returns_nothing() -> None:
    child = Child(wait_for_ever)
    assert not child.ended()

    child.kill()

    wait_until(child.ended)
    assert child.result() == b""


def test_work_that_fails_is_logged_and_ends_the_child() -> None:
    """What is forked from a server must never go on as a second server."""
    assert Child(lambda: bytes(1 // 0)).result() == b""


def test_a_child_ends_with_a_parent_that_is_killed() -> None:
    """A follower without a server would pull for nobody."""
    program = (
        "import signal, os; from serving.workers.forked import Child; "
        "Child(lambda: (print(os.getpid(), flush=True), signal.pause()) and None); signal.pause()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert parent.stdout is not None
    with parent.stdout as said:
        stat = Path(f"/proc/{said.readline().strip()}/stat")

    parent.kill()
    parent.wait()

    wait_until(lambda: not stat.exists() or " Z " in stat.read_text())
