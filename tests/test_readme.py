"""The README's commands, run in a copy of the tree as a newcomer types them."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


@dataclass
class Command:
    """A command of the README and the lines that it shows."""

    typed: str
    shown: list[str]


def commands() -> list[Command]:
    """Every command in the README's console blocks, in order."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found: list[Command] = []
    for block in re.findall(r"```console\n(.*?)```", readme, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Command(line[2:], []))
            else:
                found[-1].shown.append(line)
    return found


def shows(actual: str, expected: str) -> bool:
    """Whether a line begins with another one, numbers being about the same."""
    if len(NUMBER.findall(actual)) < len(NUMBER.findall(expected)):
        return False
    texts, wanted = NUMBER.split(actual.strip()), NUMBER.split(expected.strip())
    *same, last = wanted
    numbers = zip(NUMBER.findall(actual), NUMBER.findall(expected), strict=False)
    return (
        texts[: len(same)] == same
        and texts[len(same)].startswith(last)
        and all(float(a) == pytest.approx(float(b), rel=1e-3, abs=1e-6) for a, b in numbers)
    )


def missing(output: str, expected: list[str]) -> list[str]:
    """The expected lines that are not among the output's, in this order."""
    lines = iter(output.splitlines())
    return [line for line in expected if not any(shows(actual, line) for actual in lines)]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree as a clone would be, with the environment that runs these tests."""
    copy = tmp_path_factory.mktemp("clone")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for file in files.splitlines():
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, copy / file)
    (copy / ".venv").symlink_to(sys.prefix)
    return copy


@pytest.fixture(scope="module")
def ports(tree: Path) -> Iterator[dict[str, str]]:
    """`make run` in that tree on free ports, which take the place of the README's."""
    running = subprocess.Popen(
        ["make", "run", "IMAGE_PORT=0", "LOAD_PORT=0"],
        cwd=tree, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output = until_up(running)
        image, load = dict.fromkeys(re.findall(r"http://127\.0\.0\.1:(\d+)", output))
        yield {"8000": image, "8001": load, "output": output}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGINT)
        running.communicate(timeout=30)


def until_up(running: subprocess.Popen[str]) -> str:
    """What `make run` shows until both servers are up."""
    assert running.stdout is not None
    output = ""
    while "Ctrl-C" not in output:
        line = running.stdout.readline()
        assert line, output
        output += line
    return output


def test_the_readme_has_commands() -> None:
    assert commands()[0].typed == "make run"
    assert len(commands()) > 5


def test_every_command_shows_what_the_readme_says(tree: Path, ports: dict[str, str]) -> None:
    """One after the other, in one tree, against the servers of `make run`."""
    if shutil.which("curl") is None:
        reason = "the README's commands need curl"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    for command in commands():
        output = ports["output"]
        if command.typed != "make run":
            typed = re.sub(r":(8000|8001)/", lambda port: f":{ports[port[1]]}/", command.typed)
            ended = subprocess.run(
                ["bash", "-c", typed], cwd=tree,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert ended.returncode == 0, ended.stderr
            output = ended.stdout
        for number in ("8000", "8001"):
            output = output.replace(f":{ports[number]}/", f":{number}/")
        assert missing(output, command.shown) == [], (command.typed, output)
