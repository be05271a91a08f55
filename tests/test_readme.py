"""Run the commands and Python blocks of README.md and docs/ in a copy of the repository.

A `console` block is run: each line below a `$` line must be in the command's output, in this
order. A `python` block that begins with `# name.py` is saved as that file. All pages share one
copy and the servers of `make run`.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import docs
from tests.docs import Block, Command

NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
SERVE_PORT = re.compile(r"\bPORT=(\d+)")
PROGRAMS = ("curl", "kubectl")
# These packages are not in the lock files.
OPTIONAL_IMPORTS = ("torch",)
READY_SECONDS = 30


def shows(actual: str, expected: str) -> bool:
    """Return whether a line contains the expected text; numbers may differ slightly."""
    expected = expected.strip()
    expected_numbers = [float(number) for number in NUMBER.findall(expected)]
    pattern = f"({NUMBER.pattern})".join(map(re.escape, NUMBER.split(expected)))
    return any(
        [float(number) for number in match.groups()]
        == pytest.approx(expected_numbers, rel=1e-3, abs=1e-6)
        for match in re.finditer(pattern, actual)
    )


def missing(output: str, expected: list[str]) -> list[str]:
    """Return the expected lines that are not in the output, in this order."""
    lines = iter(output.splitlines())
    return [line for line in expected if not any(shows(actual, line) for actual in lines)]


def unavailable(program: str) -> None:
    reason = f"the commands of the documentation need {program}"
    pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, like a new clone, with the environment of this test run."""
    copy = tmp_path_factory.mktemp("clone")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=docs.ROOT, capture_output=True, text=True, check=True).stdout
    for file in files.splitlines():
        if (docs.ROOT / file).is_file():
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(docs.ROOT / file, copy / file)
    (copy / ".venv").symlink_to(sys.prefix)
    return copy


class Servers:
    """The servers that the documentation starts: `make run`, and each `make serve`."""

    def __init__(self, tree: Path) -> None:
        self._tree = tree
        self._processes: list[subprocess.Popen[str]] = []
        # Port in the documentation -> port in this test.
        self.ports: dict[str, str] = {}

    def run(self) -> str:
        """Start `make run` on free ports; return its output."""
        process = self._start("make run IMAGE_PORT=0 LOAD_PORT=0")
        output = self._read_until(process, "Ctrl-C")
        image, load = dict.fromkeys(re.findall(r"http://127\.0\.0\.1:(\d+)", output))
        self.ports |= {"8000": image, "8001": load}
        return output

    def serve(self, command: str) -> str:
        """Start `make serve …` on a free port; return its output until the model is loaded."""
        process = self._start(f"{SERVE_PORT.sub('PORT=0', command)} 2>&1")
        output = self._read_until(process, "model_loaded")
        (port,) = re.findall(r"http://127\.0\.0\.1:(\d+)", output)
        match = SERVE_PORT.search(command)
        self.ports[match[1] if match else "8000"] = port
        deadline = time.monotonic() + READY_SECONDS
        while httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code != httpx.codes.OK:
            assert time.monotonic() < deadline, output
        return output

    def translate(self, command: str) -> str:
        """Replace the documented ports of a command."""
        return re.sub(
            r"(127\.0\.0\.1:)(\d+)", lambda url: url[1] + self.ports.get(url[2], url[2]), command
        )

    def translate_back(self, output: str) -> str:
        """Replace the ports of an output by the documented ones."""
        for documented, actual in self.ports.items():
            output = output.replace(f":{actual}/", f":{documented}/")
        return output

    def stop(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
        for process in self._processes:
            process.communicate(timeout=30)

    def _start(self, command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=self._tree, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._processes.append(process)
        return process

    def _read_until(self, process: subprocess.Popen[str], text: str) -> str:
        assert process.stdout is not None
        output = ""
        while text not in output:
            line = process.stdout.readline()
            assert line, output
            output += line
        return output


@pytest.fixture(scope="module")
def servers(tree: Path) -> Iterator[Servers]:
    started = Servers(tree)
    try:
        yield started
    finally:
        started.stop()


def run(command: Command, tree: Path, servers: Servers) -> None:
    """Run one command and compare its output."""
    if command.text == "make run":
        output = servers.run()
    elif command.text.startswith("make serve"):
        output = servers.serve(command.text)
    else:
        completed = subprocess.run(
            ["bash", "-o", "pipefail", "-c", servers.translate(command.text)], cwd=tree,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert completed.returncode == 0, (command.text, completed.stdout, completed.stderr)
        output = completed.stdout
    assert missing(servers.translate_back(output), command.output) == [], (command.text, output)


def save_and_check(block: Block, tree: Path) -> None:
    """Save a Python block as its file. Run it here if no console block does and it can run."""
    assert block.file_name is not None
    (tree / block.file_name).write_text(block.text, encoding="utf-8")
    compile(block.text, block.file_name, "exec")
    for package in OPTIONAL_IMPORTS:
        if f"import {package}\n" in block.text and importlib.util.find_spec(package):
            subprocess.run([sys.executable, block.file_name], cwd=tree, check=True)


def test_every_command_has_the_documented_output(tree: Path, servers: Servers) -> None:
    """In one copy of the repository, in the order of a reader: the README, then docs/."""
    for page in docs.PAGES:
        for block in docs.blocks(docs.read(page)):
            if block.language == "python" and block.file_name:
                save_and_check(block, tree)
            elif block.language == "console":
                for command in docs.commands(block):
                    for program in PROGRAMS:
                        if command.text.startswith(program) and not shutil.which(program):
                            unavailable(program)
                    run(command, tree, servers)


def test_the_readme_has_commands() -> None:
    """The test above must not pass because it parses nothing."""
    parsed = [
        command.text
        for block in docs.blocks(docs.read(docs.README))
        if block.language == "console"
        for command in docs.commands(block)
    ]

    assert parsed[0] == "make run"
    assert len(parsed) > 8


@pytest.mark.parametrize(
    ("actual", "expected", "result"),
    [
        (
            '{"prediction":[[0.9809884428977966,0.019]]}',
            '{"prediction":[[0.98098844,0.019]]}',
            True,
        ),
        ('{"prediction":[[0.5,0.019]]}', '{"prediction":[[0.98098844,0.019]]}', False),
        ('{"level": "info", "event": "model_loaded"}', '"event": "model_loaded"', True),
        ("[6/6] Publish: models/boxes/1 (0.04 s)", "[6/6] Publish: models/boxes/1", True),
        ("[6/6] Publish: models/boxes/1", "[6/6] Publish: models/other/1", False),
    ],
)
def test_output_is_compared_up_to_small_differences_of_numbers(
    *, actual: str, expected: str, result: bool
) -> None:
    assert shows(actual, expected) is result
