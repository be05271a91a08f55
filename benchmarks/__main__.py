"""`make bench`: this server, its peers and the limit, side by side on this machine.

Exit status 1 with --check if a goal that was measured is missed by more than noise.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import report
from benchmarks.goals import Measured
from benchmarks.machine import Cores
from benchmarks.models import SAMPLES
from benchmarks.scenarios import SCENARIOS, Bench
from benchmarks.systems import HERE, ROOT, SYSTEMS, NotMeasured

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def bench(
    systems: Annotated[str, typer.Option(help="a,b,c of them")] = ",".join(SYSTEMS),
    scenarios: Annotated[str, typer.Option(help="a,b,c of them")] = ",".join(SCENARIOS),
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
    measured: list[Measured] = []
    with tempfile.TemporaryDirectory() as directory:
        store = Path(directory) / "models"
        console.print("Make the models")
        subprocess.run(
            [sys.executable, "-m", "benchmarks.models", str(store)], cwd=ROOT, check=True
        )
        run = Bench(
            cores=Cores.of_this_machine(),
            seconds=seconds,
            rounds=rounds,
            systems=chosen,
            samples=json.loads((store / SAMPLES).read_text(encoding="utf-8")),
            store=store,
            directory=Path(directory),
            say=console.print,
        )
        for name in _chosen("SCENARIOS", scenarios, list(SCENARIOS)):
            console.print(f"Measure {name}")
            try:
                measured += SCENARIOS[name](run)
            except NotMeasured as why:
                console.print(f"{name}: not measured: {why}")
    report.show(measured, console)
    for path in report.write(measured, HERE):
        console.print(f"{path.relative_to(ROOT)}")
    if check and report.missed(measured):
        raise typer.Exit(1)


def _chosen(variable: str, asked: str, known: list[str]) -> list[str]:
    names = [name.strip() for name in asked.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"{variable}: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    return names


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
