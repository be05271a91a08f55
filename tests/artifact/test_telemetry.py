"""Every process disables the telemetry of onnxruntime before it imports onnxruntime.

onnxruntime reads ORT_DISABLE_TELEMETRY once, at its first import. An import hook in a
sitecustomize module records the value of the variable at that moment, in child processes too.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

HOOK = """
import os, sys

class Recorder:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            with open(os.environ["TRACE"], "a") as trace:
                trace.write(os.environ.get("ORT_DISABLE_TELEMETRY", "unset") + "\\n")
        return None

sys.meta_path.insert(0, Recorder())
"""

# Makes a server exit after it has imported onnxruntime and verified the files of its model.
NO_START = {"CONTRACT_SHA256": "0" * 64}

# For each entry point: its arguments and its environment. It imports onnxruntime and then exits;
# whether it succeeds is not the subject of this test.
ENTRY_POINTS = {
    "model_in_image": (["-m", "model_in_image"], {"MODEL_DIR": "{artifact}", **NO_START}),
    "model_load": (["-m", "model_load"], {"MODEL_URI": "{artifact}", **NO_START}),
    "model_load pull": (
        ["-m", "model_load", "pull", "--to", "{directory}/pulled"],
        {"MODEL_URI": "{artifact}"},
    ),
    "training": (["-m", "training", "--help"], {}),
    "release": (["-m", "release", "--help"], {}),
    "artifact.verify": (["-m", "artifact.verify", "{artifact}"], {}),
    "serving.verify": (["-m", "serving.verify", "{artifact}"], {}),
    "tests.conformance": (["-c", "import tests.conformance"], {}),
    "benchmarks.models": (["-c", "import benchmarks.models"], {}),
    "benchmarks.asgi_onnxruntime": (["benchmarks/asgi_onnxruntime/server.py"], {}),
    "benchmarks.fastapi": (["benchmarks/fastapi/server.py"], {}),
    "benchmarks.mlsdp_book": (["benchmarks/mlsdp_book/server.py"], {}),
}


def values_at_import(
    arguments: list[str], environment: dict[str, str], directory: Path
) -> set[str]:
    """Run Python and return the values that the variable had when onnxruntime was imported."""
    hook, trace = directory / "hook", directory / "trace"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{hook}:{ROOT}",
            "TRACE": str(trace),
            **environment,
        },
        capture_output=True,
        timeout=120,
        check=False,
    )
    return set(trace.read_text().split()) if trace.exists() else set()


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_disables_telemetry_before_the_import(
    name: str, store: Path, tmp_path: Path
) -> None:
    """Otherwise onnxruntime starts a thread, resolves a name, and writes below $HOME."""
    arguments, environment = ENTRY_POINTS[name]
    paths = {"artifact": str(store / "iris" / "1"), "directory": str(tmp_path)}

    values = values_at_import(
        [argument.format(**paths) for argument in arguments],
        {variable: value.format(**paths) for variable, value in environment.items()},
        tmp_path,
    )

    # An empty set means that the entry point did not import onnxruntime, so nothing is proved.
    assert values == {"1"}


def test_the_hook_records_an_import_without_the_variable(tmp_path: Path) -> None:
    """Proves that the test above can fail."""
    assert values_at_import(["-c", "import onnxruntime"], {}, tmp_path) == {"unset"}


def test_a_value_of_the_user_is_kept(tmp_path: Path) -> None:
    settings = {"ORT_DISABLE_TELEMETRY": "0"}

    assert values_at_import(["-c", "import artifact.verify"], settings, tmp_path) == {"0"}
