"""Find the model of image mode: a directory that is a layer of the server's image."""

from typing import ClassVar

from pydantic import Field

from artifact.uri import LocalPath
from serving.settings import Mode, Settings
from serving.workers.model_source import ModelSource


class ModelInImageSettings(Settings):
    """The server's settings, and the directory of the artifact in this image."""

    mode: ClassVar[Mode] = "model_in_image"

    model_dir: LocalPath = Field(description="directory that holds model.onnx and contract.json")


def find(settings: ModelInImageSettings) -> ModelSource:
    """Return the directory as a source that is ready at once and never changes."""
    return ModelSource(lambda: settings.model_dir)
