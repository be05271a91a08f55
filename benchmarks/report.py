"""Report a run: tables for the terminal, JSON, and an SVG chart of the ratios."""

import html
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.goals import GOALS, Goal, Measured, Spread, values
from benchmarks.systems import SYSTEMS

_BASELINE = "uvicorn_baseline"
_STYLES = {"reached": "green", "within noise": "yellow", "missed": "red", "not measured": "dim"}
_BAR, _LABEL, _LINE, _WIDTH = 320, 170, 22, 640


def show(measured: Sequence[Measured], console: Console) -> None:
    """Print each system of each scenario, then the goals."""
    for scenario in dict.fromkeys(each.scenario for each in measured):
        console.print(_windows(scenario, measured))
    table = Table("goal", "ratio", "quarters", "of", "", title="Goals: ratios within this run")
    for goal in _measured_goals(measured):
        ratio = goal.ratio(measured)
        verdict = goal.verdict(ratio)
        bound = f"{'>=' if goal.kind == 'at least' else '<='} {goal.bound:g}"
        cells = ["", "", ""]
        if ratio:
            quarters = f"{ratio.low:.2f} to {ratio.high:.2f}"
            cells = [f"{ratio.median:.2f}", quarters, str(ratio.count)]
        table.add_row(f"{goal.about}: {bound}", *cells, f"[{_STYLES[verdict]}]{verdict}[/]")
    console.print(table)


def show_calls(microseconds: Mapping[str, Sequence[float]], console: Console) -> None:
    """Print the time per request of each application, called without a network."""
    table = Table("64 requests at once, no network", "us per request", title="micro")
    for name, times in microseconds.items():
        if spread := Spread.of(times):
            table.add_row(name, f"{spread.median:.1f}")
    if microseconds:
        console.print(table)


def missed(measured: Sequence[Measured]) -> list[Goal]:
    """Return the measured goals that are missed by more than the noise."""
    return [goal for goal in GOALS if goal.verdict(goal.ratio(measured)) == "missed"]


def write(measured: Sequence[Measured], directory: Path) -> list[Path]:
    """Write results.json and results.svg; return their paths."""
    results, picture = directory / "results.json", directory / "results.svg"
    report = {
        "machine": {"processor": _processor(), "python": platform.python_version()},
        "goals": [
            {**asdict(goal), "ratio": ratio and asdict(ratio), "verdict": goal.verdict(ratio)}
            for goal in _measured_goals(measured)
            for ratio in [goal.ratio(measured)]
        ],
        "measured": [asdict(each) for each in measured],
    }
    results.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    picture.write_text(_picture(measured), encoding="utf-8")
    return [results, picture]


def _measured_goals(measured: Sequence[Measured]) -> list[Goal]:
    """Return the goals of the scenarios that were measured."""
    scenarios = {each.scenario for each in measured}
    return [goal for goal in GOALS if goal.scenario in scenarios]


def _windows(scenario: str, measured: Sequence[Measured]) -> Table:
    selected = [each for each in measured if each.scenario == scenario]
    table = Table("system", title=scenario)
    columns = [
        name
        for name in ("requests_per_second", "rows_per_second", "cpu_seconds", "latency_p50",
                     "latency_p99", "health_p99", "start_seconds", "memory_bytes", "peak_bytes")
        if any(name in each.values for each in selected)
    ]  # fmt: skip
    for name in (*columns, "windows", "dropped"):
        table.add_column(name.replace("_", " "), justify="right")
    for system in sorted(dict.fromkeys(each.system for each in selected), key=_order):
        windows = [each for each in selected if each.system == system]
        dropped = [window for window in windows if window.dropped]
        cells = [_cell(name, [each for each in windows if not each.dropped]) for name in columns]
        reason = dropped[0].dropped if len(dropped) == len(windows) else str(len(dropped))
        label = f"{system} {SYSTEMS[system].version()}" if system in SYSTEMS else system
        table.add_row(label.strip(), *cells, str(len(windows) - len(dropped)), str(reason))
    return table


def _order(system: str) -> tuple[int, float]:
    """Return the sort key of a system: its place in SYSTEMS, or the number in its name."""
    if system in SYSTEMS:
        return list(SYSTEMS).index(system), 0
    numbers = [int(word) for word in system.replace(",", "").split() if word.isdigit()]
    return len(SYSTEMS), numbers[0] if numbers else 0


def _cell(name: str, windows: Sequence[Measured]) -> str:
    spread = Spread.of(each.values[name] for each in windows if name in each.values)
    if spread is None:
        return ""
    match name:
        case "requests_per_second" | "rows_per_second":
            return f"{spread.median:,.0f}"
        case "memory_bytes" | "peak_bytes":
            return f"{spread.median / 1e6:.0f} MB"
        case "start_seconds":
            return f"{spread.median:.2f} s"
        case "cpu_seconds":
            return f"{spread.median * 1e6:.0f} us"
    return f"{spread.median * 1e3:.2f} ms"


def _picture(measured: Sequence[Measured]) -> str:
    """Return a bar chart as SVG: requests per second relative to uvicorn_baseline."""
    baseline = values(measured, "predict", _BASELINE, "requests_per_second")
    ratios: dict[str, Spread] = {}
    for system in dict.fromkeys(each.system for each in measured if each.scenario == "predict"):
        own = values(measured, "predict", system, "requests_per_second")
        if spread := Spread.of(own[at] / baseline[at] for at in own if baseline.get(at)):
            ratios[system] = spread
    rows = sorted(ratios.items(), key=lambda item: -item[1].median)
    bars = "\n".join(_bar(at, system, spread) for at, (system, spread) in enumerate(rows))
    height = _LINE * (len(rows) + 2)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">\n'
        f'<text x="0" y="14">/predict, 64 connections, one core: requests per second relative to '
        f"uvicorn_baseline</text>\n{bars}\n</svg>\n"
    )


def _bar(at: int, system: str, spread: Spread) -> str:
    y = _LINE * (at + 1) + 6
    color = "#2563c9" if system == "this" else "#9aa5b5"
    about = html.escape(SYSTEMS[system].name if system != "this" else "this server")
    end = _LABEL + _BAR * spread.median
    return (
        f'<text x="0" y="{y + 12}">{about}</text>'
        f'<rect x="{_LABEL}" y="{y}" width="{_BAR * spread.median:.1f}" height="15" '
        f'fill="{color}"/>'
        f'<line x1="{_LABEL + _BAR * spread.low:.1f}" x2="{_LABEL + _BAR * spread.high:.1f}" '
        f'y1="{y + 7.5}" y2="{y + 7.5}" stroke="#111"/>'
        f'<text x="{end + 8:.1f}" y="{y + 12}">{spread.median:.3g}</text>'
    )


def _processor() -> str:
    """Return the processor's name from /proc/cpuinfo, or the machine type."""
    fields: Mapping[str, Any] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
    except OSError:
        return platform.machine()
    return next((str(value).strip() for key, value in fields.items() if "model name" in key), "")
