"""Values that several processes see."""

import os

import pytest

from serving.workers.shared_value import Shared


def test_a_child_sets_what_its_parent_gets() -> None:
    shared = Shared("before")
    child = os.fork()
    if child == 0:
        shared.set("after")
        os._exit(0)
    os.waitpid(child, 0)

    assert shared.get() == "after"


def test_a_value_is_seen_whole_while_it_is_being_set() -> None:
    """A worker must not open half of one path and half of another."""
    values = ["a" * 60_000, "b" * 50_000]
    shared = Shared(values[0])
    child = os.fork()
    if child == 0:
        for number in range(3_000):
            shared.set(values[number % 2])
        os._exit(0)

    seen = set()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        seen.add(shared.get())

    assert seen <= set(values)
    assert len(seen) == 2


def test_a_value_that_does_not_fit_is_refused() -> None:
    shared = Shared("", size_bytes=10)

    with pytest.raises(ValueError, match="expected at most 10 bytes, got 12"):
        shared.set("0123456789")

    assert shared.get() == ""
