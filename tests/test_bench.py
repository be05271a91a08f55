"""The arithmetic of the benchmark: dropped windows, ratios, and verdicts; and its systems."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import parse_names
from benchmarks.goals import GOALS, Goal, Measured, Spread, Verdict
from benchmarks.load import RequestSpec, Window, WrkOutput
from benchmarks.scenarios import SCENARIOS
from benchmarks.systems import ALIASES, ROOT, SYSTEMS

WRK = """Running 1s test @ http://127.0.0.1:1/predict
  1 threads and 64 connections
  20312 requests in 1.00s, 4.46MB read
Requests/sec:  20297.11

{"requests":20312,"microseconds":1000733,"errors":0,"p50":3074,"p99":4210}
"""


def window(system: str, at: int, rate: float, dropped: str | None = None) -> Measured:
    return Measured("predict", system, at, {"requests_per_second": rate}, dropped)


def test_every_goal_names_a_scenario_and_its_systems() -> None:
    named = {"binary", "json", "one", "two", "one worker", "four workers"}
    named |= {"model_in_image", "model_load", "model_load, 500 MB", "asgi_onnxruntime, 500 MB"}

    for goal in GOALS:
        assert goal.scenario in SCENARIOS
        assert {goal.of, goal.against} <= set(SYSTEMS) | named


def test_every_peer_is_pinned() -> None:
    for system in SYSTEMS.values():
        if system.peer:
            lines = (system.folder / "requirements.txt").read_text().splitlines()
            assert all("==" in line for line in lines if not line.startswith("#")), system.name
            assert system.version()


def test_every_system_has_a_folder_with_its_server() -> None:
    """A missing folder must not fall back to another one: the baseline would never start."""
    for system in SYSTEMS.values():
        if system.name == "this":
            assert system.folder == ROOT
        elif "server.py" in system.command:
            assert (system.folder / "server.py").is_file()
        else:
            assert system.folder.name == system.installed


def test_a_system_without_a_folder_is_an_error() -> None:
    system = replace(SYSTEMS["uvicorn_baseline"], name="absent")

    with pytest.raises(FileNotFoundError, match="absent: expected its server in"):
        _ = system.folder


@pytest.mark.parametrize("former", ["limit", "bare", "book"])
def test_former_names_of_systems_are_accepted(former: str) -> None:
    """Users' scripts pass them in SYSTEMS=."""
    assert parse_names("SYSTEMS", f"this, {former}", list(SYSTEMS), ALIASES) == [
        "this",
        ALIASES[former],
    ]


def test_an_unknown_system_is_rejected_with_the_known_names() -> None:
    with pytest.raises(SystemExit, match=r"SYSTEMS: expected some of uvicorn_baseline, .*got x$"):
        parse_names("SYSTEMS", "x", list(SYSTEMS), ALIASES)


def test_the_output_of_wrk_is_parsed() -> None:
    output = WrkOutput.parse(WRK)

    assert (output.requests, output.errors, output.p50) == (20312, 0, 3074)
    with pytest.raises(ValueError, match="expected a line of JSON, got 'unable to connect'"):
        WrkOutput.parse("unable to connect")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"errors": 3}, "3 requests failed"),
        ({"stolen": 0.1}, "10% of a core was stolen"),
        ({"foreign": 0.5}, "other processes ran 50% of the time"),
        ({"requests_per_second": 0}, "no request got a response"),
    ],
)
def test_a_disturbed_window_is_dropped(changed: dict[str, float], reason: str | None) -> None:
    values = {
        "requests_per_second": 1000.0, "latency_p50": 0.001, "latency_p99": 0.002,
        "cpu_seconds": 0.00005, "errors": 0, "stolen": 0.0, "foreign": 0.01,
        "server_busy": 1.0, "generator_busy": 0.4,
    }  # fmt: skip

    assert Window(**{**values, **changed}).dropped == reason  # type: ignore[arg-type]


def test_ratios_compare_windows_of_one_round() -> None:
    """A round with a dropped window has no ratio."""
    goal = Goal(
        "faster", "predict", "requests_per_second", "this", "uvicorn_baseline", 0.6, "at least"
    )
    measured = [
        window("uvicorn_baseline", 0, 100), window("this", 0, 60),
        window("uvicorn_baseline", 1, 10), window("this", 1, 7),
        window("uvicorn_baseline", 2, 100), window("this", 2, 1, dropped="others ran"),
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
def test_the_verdict_depends_on_the_median_and_the_noise(
    ratio: Spread | None, verdict: Verdict
) -> None:
    goal = Goal(
        "faster", "predict", "requests_per_second", "this", "uvicorn_baseline", 0.6, "at least"
    )

    assert goal.verdict(ratio) == verdict


def test_a_run_is_written_as_json_and_as_a_picture(tmp_path: Path) -> None:
    measured = [
        window("uvicorn_baseline", 0, 100),
        window("this", 0, 20),
        window("asgi_onnxruntime", 0, 10),
    ]

    results, picture = report.write(measured, tmp_path)

    goals = json.loads(results.read_text())["goals"]
    verdicts = {goal["about"]: goal["verdict"] for goal in goals}
    assert verdicts["/predict, 64 connections, against uvicorn_baseline"] == "missed"
    assert verdicts["/predict, against asgi_onnxruntime, which does not batch"] == "reached"
    assert [goal.against for goal in report.missed(measured)] == ["uvicorn_baseline"]
    assert "this server" in picture.read_text()


def test_the_lua_script_escapes_header_values(tmp_path: Path) -> None:
    """Lua's own long strings would end at the brackets of JSON."""
    request = RequestSpec("/predict", b'{"data": [[1]]}', headers=(("X", 'a "b"'),))

    script = request.script(tmp_path, "predict").read_text()

    assert (tmp_path / "predict.body").read_bytes() == request.body
    assert 'wrk.headers["X"] = "a \\"b\\""' in script
