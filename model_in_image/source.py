"""Where the model is in image mode: a directory that the image was built with.

Used by __main__.py; from the directory on, both modes are the same server.
"""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from serving.settings import Mode, Settings


class ModelInImageSettings(Settings):
    """The server's settings, and the directory of the artifact in this image."""

    mode: ClassVar[Mode] = "model_in_image"

    model_dir: Path = Field(description="directory that holds model.onnx and contract.json")


def locate(settings: ModelInImageSettings) -> Path:
    """Return the directory of the artifact; there is never another one."""
    return settings.model_dir
