"""`make bench`: this server, its peers and the limit, side by side on this machine.

Exit status 1 with --check if a goal that was measured is missed by more than noise.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import report
from benchmarks.bench import Bench
from benchmarks.goals import Measured
from benchmarks.machine import Cores
from benchmarks.samples import SAMPLES
from benchmarks.scenarios import SCENARIOS
from benchmarks.systems import HERE, ROOT, SYSTEMS, NotMeasured

MICRO = "micro"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def bench(
    systems: Annotated[str, typer.Option(help="a,b,c of them")] = ",".join(SYSTEMS),
    scenarios: Annotated[str, typer.Option(help="a,b,c of them")] = ",".join([*SCENARIOS, MICRO]),
    seconds: Annotated[int, typer.Option(help="of a window, whole ones")] = 1,
    rounds: Annotated[int, typer.Option(help="windows of each that count")] = 9,
    *,
    check: Annotated[bool, typer.Option("--check", help="fail when a goal is missed")] = False,
) -> None:
    """Measure side by side; print, and write benchmarks/results.json and results.svg."""
    console = Console(highlight=False)
    if shutil.which("wrk") is None:
        sys.exit("wrk: expected on PATH, got none. Debian and Ubuntu: apt-get install wrk")
    chosen = _chosen("SYSTEMS", systems, list(SYSTEMS))
    wanted = _chosen("SCENARIOS", scenarios, [*SCENARIOS, MICRO])
    cores = Cores.of_this_machine()
    # Away from the servers.
    os.sched_setaffinity(0, [cores.generator])
    measured: list[Measured] = []
    microseconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        store = Path(directory) / "models"
        console.print("Make the models")
        _python("benchmarks.models", store)
        run = Bench(
            cores=cores,
            seconds=seconds,
            rounds=rounds,
            systems=chosen,
            samples=json.loads((store / SAMPLES).read_text(encoding="utf-8")),
            store=store,
            directory=Path(directory),
            say=console.print,
        )
        for name in wanted:
            console.print(f"Measure {name}")
            if name == MICRO:
                microseconds = json.loads(_python("benchmarks.micro", store))
                continue
            try:
                measured += SCENARIOS[name](run)
            except NotMeasured as why:
                console.print(f"{name}: not measured: {why}")
    report.show(measured, console)
    report.show_calls(microseconds, console)
    for path in report.write(measured, HERE):
        console.print(f"{path.relative_to(ROOT)}")
    if check and report.missed(measured):
        raise typer.Exit(1)


def _python(module: str, store: Path) -> str:
    """Run one of our modules in a process of its own; return what it printed."""
    return subprocess.run(
        [sys.executable, "-m", module, str(store)],
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def _chosen(variable: str, asked: str, known: list[str]) -> list[str]:
    names = [name.strip() for name in asked.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"{variable}: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    return names


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
