"""`make bench`: measure this server, its peers, and the baselines side by side on this machine.

With --check the exit status is 1 if a measured goal is missed by more than the noise.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
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
from benchmarks.systems import ALIASES, HERE, ROOT, SYSTEMS, NotMeasured

MICRO = "micro"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def bench(
    systems: Annotated[str, typer.Option(help="systems, separated by commas")] = ",".join(SYSTEMS),
    scenarios: Annotated[str, typer.Option(help="scenarios, separated by commas")] = ",".join(
        [*SCENARIOS, MICRO]
    ),
    seconds: Annotated[int, typer.Option(help="length of a window")] = 1,
    rounds: Annotated[int, typer.Option(help="number of windows per system")] = 9,
    *,
    check: Annotated[bool, typer.Option("--check", help="fail if a goal is missed")] = False,
) -> None:
    """Measure, print tables, and write benchmarks/results.json and results.svg."""
    console = Console(highlight=False)
    if shutil.which("wrk") is None:
        sys.exit("wrk: expected on PATH, not found. Debian and Ubuntu: apt-get install wrk")
    chosen = parse_names("SYSTEMS", systems, list(SYSTEMS), ALIASES)
    selected = parse_names("SCENARIOS", scenarios, [*SCENARIOS, MICRO])
    cores = Cores.of_this_machine()
    # The load generator must not compete with the servers.
    os.sched_setaffinity(0, [cores.generator])
    measured: list[Measured] = []
    microseconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        store = Path(directory) / "models"
        console.print("Create the models")
        _python("benchmarks.models", store)
        run = Bench(
            cores=cores,
            seconds=seconds,
            rounds=rounds,
            systems=chosen,
            samples=json.loads((store / SAMPLES).read_text(encoding="utf-8")),
            store=store,
            directory=Path(directory),
            report=console.print,
        )
        for name in selected:
            console.print(f"Measure {name}")
            if name == MICRO:
                microseconds = json.loads(_python("benchmarks.micro", store))
                continue
            try:
                measured += SCENARIOS[name](run)
            except NotMeasured as reason:
                console.print(f"{name}: not measured: {reason}")
    report.show(measured, console)
    report.show_calls(microseconds, console)
    for path in report.write(measured, HERE):
        console.print(f"{path.relative_to(ROOT)}")
    if check and report.missed(measured):
        raise typer.Exit(1)


def _python(module: str, store: Path) -> str:
    """Run a module of this repository in a new process; return its output."""
    return subprocess.run(
        [sys.executable, "-m", module, str(store)],
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def parse_names(
    variable: str, text: str, known: list[str], aliases: Mapping[str, str] | None = None
) -> list[str]:
    """Split a list of names; exit with an error that lists the known names for any other."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    names = [(aliases or {}).get(name, name) for name in names]
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"{variable}: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    return names


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
