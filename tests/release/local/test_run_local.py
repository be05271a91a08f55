"""`make run` and `make predict`: both modes at once, shown by their real responses."""

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from release.local.run_local import show
from release.local.server_process import ServerDidNotStart
from tests.servers import start


@pytest.fixture
def run_both(store: Path) -> subprocess.Popen[str]:
    """The command behind `make run`, on free ports, with the model as a file:// URI."""
    options = ["--model", (store / "iris" / "1").as_uri(), "--image-port=0", "--load-port=0"]
    return subprocess.Popen(
        [sys.executable, "-m", "release", "run", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_both_modes_serve_until_they_are_stopped(
    run_both: subprocess.Popen[str], stop: signal.Signals
) -> None:
    assert run_both.stdout is not None
    output: list[str] = []
    while "Ctrl-C" not in "".join(output[-1:]):
        output.append(run_both.stdout.readline())
        assert output[-1], run_both.communicate()
    urls = {line.split()[-1] for line in output if line.startswith("  $ curl")}
    assert len([url for url in urls if httpx.get(url).status_code == 405]) == 4

    run_both.send_signal(stop)
    _, errors = run_both.communicate(timeout=30)

    assert run_both.returncode == 0
    assert errors == ""
    assert sum('{"prediction":["setosa"]}' in line for line in output) == 2
    for url in urls:
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)


def test_a_stop_during_the_start_leaves_no_server_running(store: Path) -> None:
    """Closing the terminal must not leave two servers on the ports that the next run needs."""
    options = ["--model", str(store / "iris" / "1"), "--image-port=0", "--load-port=0"]
    with subprocess.Popen([sys.executable, "-m", "release", "run", *options]) as running:
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        while len(started := children.read_text().split()) < 2:
            assert running.poll() is None

        running.send_signal(signal.SIGHUP)

        assert running.wait(30) == 0
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    options = [f"--model={tmp_path}/mine/1", "--image-port=0", "--load-port=0"]

    ended = subprocess.run(
        [sys.executable, "-m", "release", "run", *options],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 1
    assert ended.stderr.startswith(f"MODEL: {tmp_path}/mine/1 does not exist")


def test_a_model_without_labels_is_shown(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with start("model_in_image", store / "diabetes" / "1") as server:
        show(server.wait_until_ready().url, "here")

    output = capsys.readouterr().out
    assert output.startswith("here: diabetes 1, ")
    assert "/predict/label" not in output


def test_a_failed_start_is_reported_with_its_reason() -> None:
    with (
        start("model_load", "/nowhere/iris/1") as server,
        pytest.raises(ServerDidNotStart, match="/nowhere/iris/1"),
    ):
        server.wait_until_ready()


def predict(url: str) -> subprocess.CompletedProcess[str]:
    """Run the command behind `make predict`."""
    return subprocess.run(
        [sys.executable, "-m", "release", "predict", "--url", url],
        capture_output=True,
        text=True,
        check=False,
    )


def test_predict_without_a_server_reports_how_to_start_one() -> None:
    result = predict("http://127.0.0.1:9")

    assert result.returncode == 1
    assert "make run" in result.stderr
    assert "Traceback" not in result.stderr


def test_predict_shows_no_password(store: Path) -> None:
    """People paste its output into tickets, with the command for curl."""
    with start("model_in_image", store / "iris" / "1") as server:
        host = server.wait_until_ready().url.removeprefix("http://")
        done = predict(f"http://zquser:zq%2F@{host}")
    unreachable, invalid = (
        predict("http://zquser:zq@127.0.0.1:9"),
        predict("http://zquser:zq/zq@host"),
    )

    assert done.returncode == 0, done.stderr
    assert f"http://…@{host}/predict\n" in done.stdout
    assert "http://…@127.0.0.1:9: " in unreachable.stderr
    assert "http://…@host: expected http://host:port" in invalid.stderr
    for result in (done, unreachable, invalid):
        assert "zq" not in result.stdout + result.stderr
