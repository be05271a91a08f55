"""Which artifacts this server loads: run inside it, by its own Python.

`python -c <this text> SECONDS DIRECTORY iris/1 …` prints what the server is and how each
artifact ended, as JSON that servers.py reads. It imports nothing that an image has not. Each
artifact has a process of its own: one that kills it takes no other along.
"""

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata


def software() -> dict[str, str]:
    """Return what runs here."""
    return {
        "python": platform.python_version(),
        "onnxruntime": metadata.version("onnxruntime"),
        "numpy": metadata.version("numpy"),
        "machine": platform.machine(),
    }


def ended(directory: str, seconds: float) -> dict[str, str | int | None]:
    """Return how the verification of an artifact ended; status None: not within the time."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        done = subprocess.run(  # noqa: S603 - this very Python
            [sys.executable, "-m", "serving.verify", directory],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"status": None, "said": f"no verdict within {seconds:g} s", "at": at}
    return {"status": done.returncode, "said": done.stderr, "at": at}


if __name__ == "__main__":
    limit, root, *artifacts = sys.argv[1:]
    tried = {name: ended(f"{root}/{name}", float(limit)) for name in artifacts}
    print(json.dumps({"software": software(), "ended": tried}))
