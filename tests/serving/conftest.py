"""Servers of artificial models in both modes."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from release.local.server_process import ServerProcess
from tests.servers import all_served


@pytest.fixture(scope="session")
def own(mode: str, own_store: Path) -> Iterator[dict[str, ServerProcess]]:
    """A running server of a mode for each artificial model."""
    names = ("echo", "running-sum", "pairs", "words")
    with all_served(mode, {name: own_store / name / "1" for name in names}) as servers:
        yield servers


@pytest.fixture
def pairs(own: dict[str, ServerProcess]) -> Iterator[httpx.Client]:
    """A client of a model with two inputs and two outputs."""
    with httpx.Client(base_url=own["pairs"].url, timeout=10) as client:
        yield client
