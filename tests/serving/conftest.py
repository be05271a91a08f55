"""Servers of made-up models in both modes."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from release.server_process import ServerProcess
from tests.servers import start


@pytest.fixture(scope="session")
def own(mode: str, own_store: Path) -> Iterator[dict[str, ServerProcess]]:
    """A running server of a mode for each made-up model."""
    servers = {
        name: start(mode, own_store / name / "1")
        for name in ("echo", "running-sum", "pairs", "words")
    }
    for one in servers.values():
        one.wait_until_ready()
    yield servers
    for one in servers.values():
        assert one.stop() == 0


@pytest.fixture
def pairs(own: dict[str, ServerProcess]) -> Iterator[httpx.Client]:
    """A client of a model with two inputs and two outputs."""
    with httpx.Client(base_url=own["pairs"].url, timeout=10) as client:
        yield client
