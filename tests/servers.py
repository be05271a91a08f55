"""Starting a server as a test does: on free ports, in an environment of its own."""

import os
from collections.abc import Callable
from pathlib import Path

from release.server_process import ServerProcess

DATASETS = ("iris", "digits", "diabetes")
MODES = ("model_in_image", "model_load")
ROWS = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]

Start = Callable[..., ServerProcess]


def source(mode: str, directory: Path | str) -> dict[str, str]:
    """The setting that names a mode's model."""
    return {{"model_in_image": "MODEL_DIR", "model_load": "MODEL_URI"}[mode]: str(directory)}


def start(mode: str, directory: Path | str, **settings: str) -> ServerProcess:
    """Start a server on free ports with nothing in its environment but these settings."""
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    return ServerProcess(
        mode, {"PORT": "0", **source(mode, directory), **settings}, environment=clean
    )
