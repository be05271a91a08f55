"""The benchmark's arithmetic: what counts, what is a ratio, when a goal is reached."""

import json
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.goals import GOALS, Goal, Measured, Spread, Verdict
from benchmarks.load import Ask, Printed, Window
from benchmarks.scenarios import SCENARIOS
from benchmarks.systems import SYSTEMS

WRK = """Running 1s test @ http://127.0.0.1:1/predict
  1 threads and 64 connections
  20312 requests in 1.00s, 4.46MB read
Requests/sec:  20297.11

{"requests":20312,"microseconds":1000733,"errors":0,"p50":3074,"p99":4210}
"""


def window(system: str, at: int, rate: float, dropped: str | None = None) -> Measured:
    return Measured("predict", system, at, {"requests_per_second": rate}, dropped)


def test_every_goal_is_of_something_that_is_measured() -> None:
    named = {"binary", "json", "one", "two", "one worker", "four workers"}
    named |= {"model_in_image", "model_load", "model_load, 500 MB", "bare, 500 MB"}

    for goal in GOALS:
        assert goal.scenario in SCENARIOS
        assert {goal.of, goal.against} <= set(SYSTEMS) | named


def test_every_peer_is_pinned() -> None:
    for system in SYSTEMS.values():
        if system.peer:
            lines = (system.folder / "requirements.txt").read_text().splitlines()
            assert all("==" in line for line in lines if not line.startswith("#")), system.name
            assert system.version()


def test_what_wrk_says_is_read() -> None:
    printed = Printed.of(WRK)

    assert (printed.requests, printed.errors, printed.p50) == (20312, 0, 3074)
    with pytest.raises(ValueError, match="expected a line of JSON, got 'unable to connect'"):
        Printed.of("unable to connect")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, None),
        ({"errors": 3}, "3 requests failed"),
        ({"stolen": 0.1}, "10% of a core was stolen"),
        ({"foreign": 0.5}, "others ran 50% of the time"),
        ({"requests_per_second": 0}, "no request was answered"),
    ],
)
def test_a_window_in_which_others_ran_does_not_count(
    changed: dict[str, float], why: str | None
) -> None:
    right = {
        "requests_per_second": 1000.0, "latency_p50": 0.001, "latency_p99": 0.002,
        "cpu_seconds": 0.00005, "errors": 0, "stolen": 0.0, "foreign": 0.01,
        "server_busy": 1.0, "generator_busy": 0.4,
    }  # fmt: skip

    assert Window(**{**right, **changed}).dropped == why  # type: ignore[arg-type]


def test_ratios_are_of_windows_of_one_round() -> None:
    """A round in which one of the two was disturbed has none."""
    goal = Goal("faster", "predict", "requests_per_second", "this", "limit", 0.6, "at least")
    measured = [
        window("limit", 0, 100), window("this", 0, 60),
        window("limit", 1, 10), window("this", 1, 7),
        window("limit", 2, 100), window("this", 2, 1, dropped="others ran"),
    ]  # fmt: skip

    ratio = goal.ratio(measured)

    assert ratio is not None
    assert ratio.count == 2
    assert ratio.median == pytest.approx(0.65)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (None, "not measured"),
        (Spread(0.61, 0.55, 0.64, 9), "reached"),
        (Spread(0.59, 0.55, 0.62, 9), "within noise"),
        (Spread(0.50, 0.48, 0.52, 9), "missed"),
    ],
)
def test_a_goal_is_judged_by_the_middle_and_the_noise(
    ratio: Spread | None, verdict: Verdict
) -> None:
    goal = Goal("faster", "predict", "requests_per_second", "this", "limit", 0.6, "at least")

    assert goal.verdict(ratio) == verdict


def test_a_run_is_written_for_programs_and_for_people(tmp_path: Path) -> None:
    measured = [window("limit", 0, 100), window("this", 0, 20), window("bare", 0, 10)]

    results, picture = report.write(measured, tmp_path)

    found = json.loads(results.read_text())
    verdicts = {one["about"]: one["verdict"] for one in found["goals"]}
    assert verdicts["/predict, 64 connections, against the limit"] == "missed"
    assert verdicts["/predict, against bare, which does not gather"] == "reached"
    assert [goal.against for goal in report.missed(measured)] == ["limit"]
    assert "this server" in picture.read_text()


def test_a_request_is_written_as_wrk_reads_it(tmp_path: Path) -> None:
    """Lua's own long strings would end at the brackets of JSON."""
    ask = Ask("/predict", b'{"data": [[1]]}', headers=(("X", 'a "b"'),))

    script = ask.script(tmp_path, "one").read_text()

    assert (tmp_path / "one.body").read_bytes() == ask.body
    assert 'wrk.headers["X"] = "a \\"b\\""' in script
