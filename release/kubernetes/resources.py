"""Choose the memory of a server and the size of its model volume.

MEMORY= wins over the manifests, and the manifests win over the value computed from the model's
size. k8s/base contains neither value, so a value in the rendered manifests is the user's.
"""

import re
from decimal import Decimal
from typing import Any

from release.kubernetes.errors import ReleaseError

_MIB = 1 << 20
# Enough for a small model. Larger models: the server itself, and three times the file, because
# onnxruntime reads the file, parses it, and keeps its own copy of the weights.
_MIN_MEMORY_MIB = 192
_SERVER_MIB = 128
_MEMORY_PER_MODEL = 3
# Twice the model's size and at least 1 GiB: a pull must never fail because the volume is full.
_MIN_VOLUME_MIB = 1024
_VOLUME_PER_MODEL = 2

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)((?:[KMGTPE]i)|[kMGTPE])?")
_UNITS = {"": 1, "k": 1000}
for _power, _letter in enumerate("KMGTPE", start=1):
    _UNITS |= {_letter: 1000**_power, f"{_letter}i": 1024**_power}
_COMPUTED = "computed from the model's size"


def memory_bytes(quantity: str) -> Decimal:
    """Return the bytes of a quantity such as 512Mi. Raises ReleaseError if it is invalid."""
    match = _QUANTITY.fullmatch(quantity)
    size = Decimal(match[1]) * _UNITS[match[2] or ""] if match else Decimal(0)
    # `512` means 512 bytes: almost certainly the unit was forgotten.
    if size < _MIB:
        raise ReleaseError(
            f"MEMORY: expected a Kubernetes quantity of at least 1Mi, such as 512Mi or 2Gi, "
            f"got {quantity}"
        )
    return size


def set_resources(
    deployment: dict[str, Any], model_bytes: int, memory: str | None, folder: str
) -> list[str]:
    """Complete a rendered Deployment; return the values and their origins, one line each.

    deployment: changed in place.
    memory: the value of MEMORY=, None if it is not set.
    folder: the folder of the manifests, which is printed as the origin of their values.
    """
    pod = deployment["spec"]["template"]["spec"]
    (server,) = (item for item in pod["containers"] if item["name"] == "server")
    lines = [_set_memory(server.setdefault("resources", {}), model_bytes, memory, folder)]
    volumes = (volume for volume in pod.get("volumes", ()) if volume["name"] == "model")
    return lines + [
        _set_volume_size(volume, model_bytes, folder) for volume in volumes if "emptyDir" in volume
    ]


def _set_memory(
    resources: dict[str, Any], model_bytes: int, memory: str | None, folder: str
) -> str:
    values = {
        kind: resources[kind]["memory"]
        for kind in ("requests", "limits")
        if "memory" in resources.get(kind, {})
    }
    if values and not memory:
        # Both stay as the user wrote them: Kubernetes has its own default for the missing one.
        return f"memory: {_as_text(values)} ({folder})"
    origin = "MEMORY=" if memory else _COMPUTED
    memory = memory or f"{_memory_mib(model_bytes)}Mi"
    for kind in ("requests", "limits"):
        resources.setdefault(kind, {})["memory"] = memory
    return f"memory: {memory} ({origin})"


def _set_volume_size(volume: dict[str, Any], model_bytes: int, folder: str) -> str:
    volume["emptyDir"] = volume["emptyDir"] or {}
    if size := volume["emptyDir"].get("sizeLimit"):
        return f"model volume: {size} ({folder})"
    size = f"{max(_MIN_VOLUME_MIB, _VOLUME_PER_MODEL * model_bytes // _MIB)}Mi"
    volume["emptyDir"]["sizeLimit"] = size
    return f"model volume: {size} ({_COMPUTED})"


def _memory_mib(model_bytes: int) -> int:
    model_mib = -(-model_bytes // _MIB)
    return max(_MIN_MEMORY_MIB, _SERVER_MIB + _MEMORY_PER_MODEL * model_mib)


def _as_text(values: dict[str, str]) -> str:
    if len(set(values.values())) == 1 and len(values) > 1:
        return values["limits"]
    return ", ".join(f"{kind} {value}" for kind, value in values.items())
