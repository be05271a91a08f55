"""The Makefile: values reach programs exactly as typed, and help documents every variable."""

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

from release import make_help

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
VARIABLES = re.findall(r"^(?:export )?([A-Z_]+) *[:?]?=", MAKEFILE, re.MULTILINE)
TARGETS = re.findall(r"^([a-z0-9-]+):.*##\+? ", MAKEFILE, re.MULTILINE)
# Targets that only experts need: they are not in `make help`.
EXPERT_TARGETS = re.findall(r"^([a-z0-9-]+):.*##\+ ", MAKEFILE, re.MULTILINE)
MAX_HELP_WIDTH = 100
# Variables that switch an option on or off. Their values are not passed to programs.
FLAGS = {"AUTO", "CHECK", "UPGRADE", "YES", "SHORT"}
# Variables that programs read from the environment.
ENVIRONMENT = {"DOCKER", "EVICT_IMAGE"}
# Variables that hold several values, separated by spaces.
LISTS = {"LOCK"}
INSTALLED = (".venv/installed", ".venv/installed-dev")
# Characters with a meaning for make or the shell. Interpreting them creates the file `injected`.
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
    """A copy of the Makefile with programs that only record their arguments and environment."""

    directory: Path

    @property
    def record(self) -> Path:
        return self.directory / "record.jsonl"

    def install(self, program: str, text: str | None = None) -> Path:
        """Write a program; without a text it records its arguments and environment."""
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
        """Return the arguments and the environment of each program that make started."""
        return [tuple(json.loads(line)) for line in self.record.read_text().splitlines()]

    def arguments(self) -> list[str]:
        return [argument for arguments, _ in self.calls() for argument in arguments[1:]]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project whose set-up is complete for make."""
    copy = Project(tmp_path)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for program in ("python", "ruff", "mypy", "uv"):
        copy.install(f".venv/bin/{program}")
    copy.install("bin/kind")
    # The Makefile searches PATH for a new enough Python and finds this program.
    copy.install("bin/python", "#!/bin/sh\n")
    copy.install("release/make_help.py")
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
def test_every_value_reaches_its_program_unchanged(project: Project, where: str) -> None:
    """A variable that is added to the Makefile is covered automatically."""
    # On the command line, make itself strips spaces before a value.
    before = "  " if where == "environment" else ""
    values = {name: f"{before}[{name}] {NASTY}" for name in VARIABLES}
    for target in TARGETS:
        run(project, target, values, where)
    # DATA replaces DATASET, and `make serve` rejects an unknown MODE.
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


def test_a_flag_is_on_only_with_the_value_1(project: Project) -> None:
    run(project, "canary", {"AUTO": "1"})
    run(project, "canary", {"AUTO": "0"})

    assert [("--auto" in arguments) for arguments, _ in project.calls()] == [True, False]


def test_a_value_reaches_a_nested_make(project: Project) -> None:
    """Make passes its command-line variables to a nested make in its own encoding."""
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


def test_images_are_loaded_into_a_cluster_of_any_name(project: Project) -> None:
    """LOAD_IMAGE is a command: its default quotes the name of the cluster."""
    run(project, "deploy", {"CLUSTER": NASTY})

    (option,) = [word for word in project.arguments() if word.startswith("--load-image=")]
    assert shlex.split(option.partition("=")[2])[-2:] == ["--name", NASTY]


@pytest.mark.parametrize(
    "mode",
    ["both", "model_load model_in_image", "%", "", NASTY],
    ids=["unknown", "two", "pattern", "empty", "nasty"],
)
def test_an_unknown_mode_is_rejected(project: Project, mode: str) -> None:
    result = run(project, "serve", {"MODE": mode})

    assert result.returncode != 0
    assert f"MODE: expected model_in_image or model_load, got {mode}" in result.stderr
    assert not project.record.exists()


@pytest.mark.parametrize("purpose", ["over $US 50", NASTY], ids=["dollar", "nasty"])
def test_training_records_the_purpose_and_a_command_that_repeats_it(
    project: Project, purpose: str
) -> None:
    """Pasting the recorded command into a shell gives the same contract."""
    python = f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} "$@"\n'
    project.install(".venv/bin/python", python)
    data = project.directory / "it's $5 & more.csv"
    rows = [f"{number % 7},{number % 3},{number % 2}\n" for number in range(60)]
    data.write_text("a,b,target\n" + "".join(rows), encoding="utf-8")

    values = {"DATA": data.name, "TARGET": "target", "NAME": "own", "STORE": "first"}
    result = run(project, "train", {**values, "PURPOSE": purpose, "OWNER": "Ada $AL"})
    assert result.returncode == 0, result.stderr

    first = (project.directory / "first/own/1/contract.json").read_bytes()
    contract = json.loads(first)
    assert (contract["purpose"], contract["owner"]) == (purpose, "Ada $AL")
    again = f"{contract['origin']['command']} STORE=second"
    subprocess.run(["sh", "-c", again], cwd=project.directory, check=True, capture_output=True)
    assert (project.directory / "second/own/1/contract.json").read_bytes() == first


def test_docker_may_be_set_in_the_environment(project: Project) -> None:
    """Other variables are not read from the environment: NAME and VERSION are often set there."""
    project.make("build", environment={"DOCKER": NASTY, "STORE": "elsewhere"})

    ((arguments, environment),) = project.calls()
    assert environment["DOCKER"] == NASTY
    assert "--store=models" in arguments


def make(target: str) -> subprocess.CompletedProcess[str]:
    """Run a target of this repository's Makefile."""
    return subprocess.run(["make", target], cwd=ROOT, capture_output=True, text=True, check=False)


def documented(target: str) -> dict[str, str]:
    """Return the variables in the help of a target, with their defaults."""
    text = make_help.Makefile(MAKEFILE).describe(target)
    return dict(re.findall(r"^  ([A-Z_]+)=(.*)$", text, re.MULTILINE))


@pytest.mark.parametrize("target", TARGETS)
def test_every_variable_that_a_target_uses_is_in_its_help(project: Project, target: str) -> None:
    """The values that make puts into the commands show which variables the target uses."""
    values = {name: f"[{name}]" for name in VARIABLES if name not in FLAGS | {"MODE"}}
    switches = {**dict.fromkeys(FLAGS, "1"), "MODE": "model_load"}
    # DATA replaces DATASET, and the default of LOAD_IMAGE contains CLUSTER.
    for unset in (set(), {"DATA", "LOAD_IMAGE"}):
        arguments = [
            f"{name}={value}" for name, value in {**values, **switches}.items() if name not in unset
        ]
        commands = project.make("--dry-run", target, *arguments).stdout

        used = {name for name in VARIABLES if f"[{name}]" in commands}

        assert used <= documented(target).keys()


def test_every_variable_is_in_the_help_of_a_target() -> None:
    """Flags too, which the commands do not show."""
    names = {name for target in TARGETS for name in documented(target)}

    assert set(VARIABLES) - names == set()


def test_help_of_a_target_shows_its_variables_with_defaults_and_meanings() -> None:
    lines = make("help-deploy").stdout.splitlines()

    assert lines[0].startswith("make deploy: ")
    assert lines[lines.index("  MODEL=models/iris/1") + 1].startswith("      artifact directory")
    assert "  LOAD_IMAGE=kind load docker-image --name 'inference'" in lines


def test_help_lines_are_short() -> None:
    lists = [make(target).stdout for target in ("help", "help-all")]
    targets = [make_help.Makefile(MAKEFILE).describe(target) for target in TARGETS]
    lines = "\n".join([*lists, *targets]).splitlines()

    assert [line for line in lines if len(line) > MAX_HELP_WIDTH] == []


def test_expert_targets_are_only_in_the_complete_list() -> None:
    """A newcomer sees the targets of the first day."""
    short, complete = (
        set(re.findall(r"^  make ([a-z0-9-]+) ", make(target).stdout, re.MULTILINE))
        for target in ("help", "help-all")
    )

    assert complete == set(TARGETS)
    assert complete - short == set(EXPERT_TARGETS)


@pytest.mark.parametrize("name", ["xyz", "it's"])
def test_help_of_an_unknown_target_is_an_error(name: str) -> None:
    result = make(f"help-{name}")

    assert result.returncode != 0
    expected = f"make help-{name}: expected a target, got {name}. `make help-all` lists them."
    assert expected in result.stderr
