"""What this process answers about itself: /inventory, the record of what really runs.

Never what a manifest says it should be: everything is asked of the process, the installed
packages and the contract of the model it serves.
"""

import os
import platform
import socket
from datetime import UTC, datetime
from typing import Any

from serving.environment import operating_system, packages
from serving.model import Model
from serving.settings import Settings


class Inventory:
    """The facts of one process; made when it starts."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._started_at = datetime.now(UTC)

    def describe(self, model: Model) -> dict[str, Any]:
        """Return the process, its software and the model it serves."""
        contract = model.contract
        return {
            "mode": self._settings.mode,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_at": self._started_at.isoformat(timespec="seconds"),
            "os": operating_system(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "packages": packages(),
            "providers": model.session.get_providers(),
            "settings": self._settings.model_dump(mode="json"),
            "model": {
                "name": contract.name,
                "version": contract.version,
                "purpose": contract.purpose,
                "owner": contract.owner,
                "sha256": contract.model.sha256,
                "opsets": contract.model.opsets,
                "ir_version": contract.model.ir_version,
                "source": str(model.directory),
                "loaded_at": model.loaded_at.isoformat(timespec="seconds"),
                "load_seconds": round(model.load_seconds, 4),
                "inputs": [tensor.model_dump(mode="json") for tensor in contract.inputs],
                "outputs": [tensor.model_dump(mode="json") for tensor in contract.outputs],
                "origin": contract.origin.model_dump(mode="json"),
            },
        }
