"""Annotations that say on a pod template which release it runs.

Earlier versions of this project wrote the prefix `inference/`. Both names are written, so that
scripts that read the earlier names keep working, and both are read, so that what an earlier
version deployed is found, updated, and rolled back to.
"""

from collections.abc import Mapping
from typing import Any

# The model as `iris/1`: the names of objects may be shortened.
MODEL = "inference.internal/model"
# The server's environment gets this value, so it accepts no other contract.
CONTRACT_SHA256 = "inference.internal/contract-sha256"
# The image's ID in the Docker engine that built it: a tag alone does not identify the image.
IMAGE_ID = "inference.internal/image-id"
# Where the servers get the model: image, volume, bucket, or image_volume.
SOURCE = "inference.internal/source"
# On an autoscaler: its limits, and the pods, before a canary added a fresh stable replica.
BEFORE_FRESH = "inference.internal/before-fresh"


def former_name(name: str) -> str:
    """Return the name of an annotation in earlier versions of this project."""
    return f"inference/{name.partition('/')[2]}"


def with_former_names(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return annotations under their current and their former names."""
    former = {former_name(name): value for name, value in annotations.items()}
    return {**former, **annotations}


def read(metadata: Mapping[str, Any], name: str) -> str | None:
    """Return the annotation of an object or a template, None if it has none."""
    annotations = metadata.get("annotations") or {}
    value: str | None = annotations.get(name, annotations.get(former_name(name)))
    return value
