"""Where the model is in image mode: a directory that the image was built with.

Used by __main__.py; from the directory on, both modes are the same server.
"""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from serving.settings import Mode, Settings
from serving.workers.model_source import ModelSource


class ModelInImageSettings(Settings):
    """The server's settings, and the directory of the artifact in this image."""

    mode: ClassVar[Mode] = "model_in_image"

    model_dir: Path = Field(description="directory that holds model.onnx and contract.json")


def find(settings: ModelInImageSettings) -> ModelSource:
    """Return the artifact's directory as a source; it is there, and there is never another."""
    return ModelSource(lambda: settings.model_dir)
