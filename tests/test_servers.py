"""The helpers that start servers for tests."""

from pathlib import Path

import pytest

import tests.servers
from release.local.server_process import ServerDidNotStart, ServerProcess
from tests.servers import all_served, start


def test_no_server_is_left_running_if_another_one_does_not_start(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[ServerProcess] = []

    def record(mode: str, directory: Path) -> ServerProcess:
        started.append(start(mode, directory))
        return started[-1]

    monkeypatch.setattr(tests.servers, "start", record)
    artifacts = {"iris": store / "iris" / "1", "missing": tmp_path / "missing" / "1"}

    with pytest.raises(ServerDidNotStart), all_served("model_in_image", artifacts):
        pass

    assert len(started) == 2
    assert [server for server in started if server.process.poll() is None] == []


def test_a_server_that_exits_with_an_error_fails_the_test(store: Path) -> None:
    artifacts = {"iris": store / "iris" / "1"}

    with pytest.raises(AssertionError), all_served("model_in_image", artifacts) as servers:
        servers["iris"].process.kill()
