"""Load artifacts in the server that runs this script, and print the results as JSON.

`python -c <this text> SECONDS DIRECTORY iris/1 …` runs inside a server image, so it imports the
standard library only. Each artifact is verified in its own process: a crash in ONNX Runtime must
not hide the results of the other artifacts.
"""

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata


def software() -> dict[str, str]:
    """Return the versions that decide which models this server can load."""
    return {
        "python": platform.python_version(),
        "onnxruntime": metadata.version("onnxruntime"),
        "numpy": metadata.version("numpy"),
        "machine": platform.machine(),
    }


def verify(directory: str, seconds: float) -> dict[str, str | int | None]:
    """Verify an artifact; return the exit status, None after a timeout, and the error output."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        # Images that were built before artifact/ existed know the command by this name only.
        result = subprocess.run(  # noqa: S603 - the server's own Python
            [sys.executable, "-m", "serving.verify", directory],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"status": None, "stderr": f"no result within {seconds:g} s", "at": at}
    return {"status": result.returncode, "stderr": result.stderr, "at": at}


if __name__ == "__main__":
    limit, root, *artifacts = sys.argv[1:]
    results = {artifact: verify(f"{root}/{artifact}", float(limit)) for artifact in artifacts}
    print(json.dumps({"software": software(), "results": results}))
