"""The Makefile: every variable's value reaches the program exactly as the user typed it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
VARIABLES = re.findall(r"^(?:export )?([A-Z_]+) *[:?]?=", MAKEFILE, re.MULTILINE)
TARGETS = re.findall(r"^([a-z0-9-]+):.*##", MAKEFILE, re.MULTILINE)
# Variables that switch an option on or off: their values reach no program.
FLAGS = {"AUTO", "CHECK", "UPGRADE", "YES", "SHORT"}
# Variables that programs read from the environment.
ENVIRONMENT = {"DOCKER", "EVICT_IMAGE"}
# Variables that hold several values, separated by spaces.
LISTS = {"LOCK"}
INSTALLED = (".venv/installed", ".venv/installed-dev")
# Characters that mean something to make or to the shell; only `injected` may never exist.
NASTY = (
    'it\'s "quoted" $US $$ ${HOME} $(shell touch injected) $(touch injected) `touch injected`'
    " # 100 % a=b,c) (d; e | f & g > injected * ~ ! \\ \\n é ☃ end of line\\\nsecond\tline  "
)
RECORDER = """#!{python} -IS
import json, os, sys
with open({record!r}, "a", encoding="utf-8") as file:
    file.write(json.dumps([sys.argv, dict(os.environ)]) + "\\n")
"""


@dataclass(frozen=True)
class Project:
    """A copy of the Makefile whose programs only record how make starts them."""

    directory: Path

    @property
    def record(self) -> Path:
        return self.directory / "record.jsonl"

    def install(self, program: str, text: str | None = None) -> Path:
        """Write a program; without a text, one that records its arguments and environment."""
        path = self.directory / program
        path.parent.mkdir(parents=True, exist_ok=True)
        recorder = RECORDER.format(python=sys.executable, record=str(self.record))
        path.write_text(recorder if text is None else text, encoding="utf-8")
        path.chmod(0o755)
        return path

    def make(
        self, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        return subprocess.run(
            ["make", *arguments],
            cwd=self.directory,
            env={
                **clean,
                "PATH": f"{self.directory / 'bin'}:{clean['PATH']}",
                **(environment or {}),
            },
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[tuple[list[str], dict[str, str]]]:
        """Return the arguments and the environment of each program that make has started."""
        return [tuple(json.loads(line)) for line in self.record.read_text().splitlines()]

    def arguments(self) -> list[str]:
        return [argument for arguments, _ in self.calls() for argument in arguments[1:]]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project that make regards as set up."""
    copy = Project(tmp_path)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for program in ("python", "ruff", "mypy", "uv"):
        copy.install(f".venv/bin/{program}")
    copy.install("bin/kind")
    # The first Python that the Makefile tries: it is new enough.
    copy.install("bin/python", "#!/bin/sh\n")
    for file in ("requirements.txt", "requirements-dev.txt", "tests/package-lock.json"):
        copy.install(file)
        os.utime(tmp_path / file, (0, 0))
    for file in (*INSTALLED, "tests/node_modules/.package-lock.json"):
        copy.install(file)
    return copy


def run(
    project: Project, target: str, values: Mapping[str, str], where: str = "command line"
) -> subprocess.CompletedProcess[str]:
    """Run a target with values for its variables."""
    if where == "environment":
        return project.make("-e", target, environment=values)
    return project.make(target, *(f"{name}={value}" for name, value in values.items()))


@pytest.mark.parametrize("where", ["command line", "environment"])
def test_every_value_reaches_its_program_unaltered(project: Project, where: str) -> None:
    """A new variable is covered as soon as the Makefile has it."""
    # On the command line make itself removes the spaces before a value.
    before = "  " if where == "environment" else ""
    values = {name: f"{before}[{name}] {NASTY}" for name in VARIABLES}
    for target in TARGETS:
        run(project, target, values, where)
    # DATA replaces DATASET, and `make serve` refuses an unknown MODE.
    others = {**values, "MODE": "model_load"}
    del others["DATA"]
    for target in ("train", "serve"):
        run(project, target, others, where)

    assert not (project.directory / "injected").exists()
    arguments = project.arguments()
    for name in set(VARIABLES) - FLAGS - ENVIRONMENT - LISTS - {"PYTHON"}:
        holding = [argument for argument in arguments if f"[{name}]" in argument]
        assert holding, name
        assert [argument for argument in holding if values[name] not in argument] == []
    for name in LISTS:
        words = [f"--{name.lower()}={word}" for word in values[name].split()]
        assert [argument for argument in arguments if argument in words][: len(words)] == words
    for _, environment in project.calls():
        assert {name: environment[name] for name in ENVIRONMENT} == {
            name: values[name] for name in ENVIRONMENT
        }


def test_a_flag_is_on_with_the_value_1_alone(project: Project) -> None:
    run(project, "canary", {"AUTO": "1"})
    run(project, "canary", {"AUTO": "0"})

    assert [("--auto" in arguments) for arguments, _ in project.calls()] == [True, False]


def test_a_value_reaches_a_make_that_make_starts(project: Project) -> None:
    """Make passes the variables of its command line on, in an encoding of its own."""
    nested = '#!/bin/sh\n[ $MAKELEVEL = 1 ] && exec make train\nexec ../recorder "$@"\n'
    recorder = project.install("recorder")
    project.install(".venv/bin/python", nested.replace("../recorder", str(recorder)))

    run(project, "train", {"PURPOSE": NASTY})

    assert f"--purpose={NASTY}" in project.arguments()


def test_python_may_have_any_path(project: Project) -> None:
    program = project.install(NASTY.replace("/", ""))
    (project.directory / INSTALLED[0]).unlink()

    run(project, "setup", {"PYTHON": f"./{program.name}"})

    assert project.calls()[0][0] == [f"./{program.name}", "-m", "venv", ".venv"]


def test_images_are_loaded_into_the_cluster_of_any_name(project: Project) -> None:
    """LOAD_IMAGE is a command: its default quotes the name of the cluster in it."""
    run(project, "deploy", {"CLUSTER": NASTY})

    (option,) = [word for word in project.arguments() if word.startswith("--load-image=")]
    assert shlex.split(option.partition("=")[2])[-2:] == ["--name", NASTY]


@pytest.mark.parametrize(
    "mode",
    ["both", "model_load model_in_image", "%", "", NASTY],
    ids=["unknown", "two", "pattern", "empty", "nasty"],
)
def test_an_unknown_mode_is_refused(project: Project, mode: str) -> None:
    done = run(project, "serve", {"MODE": mode})

    assert done.returncode != 0
    assert f"MODE: expected model_in_image or model_load, got {mode}" in done.stderr
    assert not project.record.exists()


@pytest.mark.parametrize("purpose", ["over $US 50", NASTY], ids=["dollar", "nasty"])
def test_training_records_the_purpose_and_a_command_that_repeats_it(
    project: Project, purpose: str
) -> None:
    """A contract is the same after its command was pasted into a shell."""
    real = f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} "$@"\n'
    project.install(".venv/bin/python", real)
    data = project.directory / "it's $5 & more.csv"
    rows = [f"{number % 7},{number % 3},{number % 2}\n" for number in range(60)]
    data.write_text("a,b,target\n" + "".join(rows), encoding="utf-8")

    values = {"DATA": data.name, "TARGET": "target", "NAME": "own", "STORE": "first"}
    done = run(project, "train", {**values, "PURPOSE": purpose, "OWNER": "Ada $AL"})
    assert done.returncode == 0, done.stderr

    first = (project.directory / "first/own/1/contract.json").read_bytes()
    contract = json.loads(first)
    assert (contract["purpose"], contract["owner"]) == (purpose, "Ada $AL")
    again = f"{contract['origin']['command']} STORE=second"
    subprocess.run(["sh", "-c", again], cwd=project.directory, check=True, capture_output=True)
    assert (project.directory / "second/own/1/contract.json").read_bytes() == first


def test_docker_may_be_named_in_the_environment(project: Project) -> None:
    """The other variables are not taken from there: `NAME` and `VERSION` are often set."""
    project.make("build", environment={"DOCKER": NASTY, "STORE": "elsewhere"})

    ((arguments, environment),) = project.calls()
    assert environment["DOCKER"] == NASTY
    assert "--store=models" in arguments
