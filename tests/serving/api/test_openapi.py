"""/openapi.json against the server that it describes, by requests that are made of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from release.local.server_process import ServerProcess

TESTS = Path(__file__).parents[2]
# Of a few seconds; the fourth, stateful, has nothing here to go from one path to another by.
PHASES, EXAMPLES = "examples,coverage,fuzzing", 10


@pytest.mark.parametrize("model", ["iris", "words"])
def test_every_answer_is_one_that_is_documented(
    own: dict[str, ServerProcess], running: dict[str, ServerProcess], model: str, tmp_path: Path
) -> None:
    """No 500, no wrong request that is taken for a right one, no answer of another form."""
    url = f"{(own | running)[model].url}/openapi.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli",
            f"--config-file={TESTS / 'schemathesis.toml'}",
            "run", url, f"--phases={PHASES}", f"--max-examples={EXAMPLES}", "--seed=1",
        ],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
