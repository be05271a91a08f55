"""Build the response of /inventory: the record of what really runs in this process.

All facts are read from the process, its installed packages, and the contract of its model. None
is copied from a manifest, which only states what should run.
"""

import os
import platform
import socket
from datetime import UTC, datetime
from typing import Any

from artifact.redact import redact_all
from artifact.software import (
    cpu_features,
    operating_system,
    other_versions,
    packages,
    revision,
)
from serving.inference.batcher import Batcher
from serving.inference.model import Model
from serving.settings import Settings


class Inventory:
    """Describes one process: its software, its settings, and the model that it serves."""

    def __init__(self, settings: Settings, batcher: Batcher) -> None:
        self._settings = settings
        self._batcher = batcher
        self._started_at = datetime.now(UTC)

    def describe(self) -> dict[str, Any]:
        """Return the JSON fields of /inventory. Raises RequestError 503 before a model is loaded.

        image, revision: from IMAGE and IMAGE_REVISION, which the Dockerfiles set; null outside
        of an image.
        """
        model = self._batcher.model
        # A URI may contain credentials, and the inventory is readable by anyone in the network.
        settings = redact_all(self._settings.model_dump(mode="json"))
        return {
            "mode": self._settings.mode,
            "image": os.environ.get("IMAGE"),
            "revision": revision(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_at": self._started_at.isoformat(timespec="seconds"),
            "ready": self._batcher.ready,
            "degraded": self._batcher.degraded,
            "os": operating_system(),
            "kernel": platform.release(),
            "cpu_features": cpu_features(),
            "python": platform.python_version(),
            "packages": packages(),
            "providers": model.session.get_providers(),
            "settings": settings,
            "model": _model(model, settings.get("model_uri") or settings.get("model_dir")),
        }


def _model(model: Model, source: Any) -> dict[str, Any]:
    contract = model.contract
    return {
        "name": contract.name,
        "version": contract.version,
        "purpose": contract.purpose,
        "owner": contract.owner,
        "sha256": contract.model.sha256,
        "contract_sha256": model.contract_sha256,
        "opsets": contract.model.opsets,
        "ir_version": contract.model.ir_version,
        "source": source,
        "directory": str(model.directory),
        "loaded_at": model.loaded_at.isoformat(timespec="seconds"),
        "load_seconds": round(model.load_seconds, 4),
        "inputs": [tensor.model_dump(mode="json") for tensor in contract.inputs],
        "outputs": [tensor.model_dump(mode="json") for tensor in contract.outputs],
        "origin": contract.origin.model_dump(mode="json"),
        "other_versions": other_versions(contract.origin.environment),
    }
