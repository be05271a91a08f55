"""What this process answers about itself: /inventory, the record of what really runs.

Never what a manifest says it should be: everything is asked of the process, the installed
packages and the contract of the model it serves.
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
from serving.inference.batcher import Runner
from serving.inference.model import Model
from serving.settings import Settings


class Inventory:
    """The facts of one process; made when it starts."""

    def __init__(self, settings: Settings, runner: Runner) -> None:
        self._settings = settings
        self._runner = runner
        self._started_at = datetime.now(UTC)

    def describe(self) -> dict[str, Any]:
        """Return the process, its software and the model it serves.

        image and revision: what the image says of itself in IMAGE and IMAGE_REVISION, null
        outside of one. Raises RequestError while there is no model.
        """
        model = self._runner.model
        settings = redact_all(self._settings.model_dump(mode="json"))
        return {
            "mode": self._settings.mode,
            "image": os.environ.get("IMAGE"),
            "revision": revision(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_at": self._started_at.isoformat(timespec="seconds"),
            "ready": self._runner.ready,
            "degraded": self._runner.degraded,
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
