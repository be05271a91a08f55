"""Names of deployments: the Kubernetes objects of one model in one mode share a name.

Models never share a name, because deploying one would replace the other.
"""

import re
from typing import Literal

from release.names import is_hashed, with_hash

TrackName = Literal["stable", "canary"]

# Labels have at most 63 characters. `-canary` and the hashes of a ReplicaSet and a pod take 23.
_MAX_LENGTH = 40
# RFC 1035, which Kubernetes requires for the name of a Service.
_DNS_LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")


def deployment_name(model: str, mode: str) -> str:
    """Return the name for a model in a mode, such as `iris-model-load`.

    Names that Kubernetes rejects get a hash: `my_model` becomes
    `my-model--535d4cfe74-model-load`.
    """
    suffix = mode_suffix(mode)
    max_length = _MAX_LENGTH - len(suffix)
    if _DNS_LABEL.fullmatch(model) and len(model) <= max_length and not is_hashed(model):
        return model + suffix
    readable = re.sub("[^a-z0-9]", "-", model)
    if not readable[:1].isalpha():
        readable = f"m-{readable}"
    return with_hash(readable, model, max_length) + suffix


def former_deployment_name(model: str, mode: str) -> str:
    """Return the name that earlier versions of this project chose; models could share it."""
    return re.sub("[._]", "-", model) + mode_suffix(mode)


def mode_suffix(mode: str) -> str:
    """Return the end of every deployment's name in a mode, such as `-model-load`."""
    return f"-{mode.replace('_', '-')}"


def object_name(deployment: str, track: TrackName) -> str:
    """Return the name of a track's Kubernetes Deployment and autoscaler."""
    return deployment if track == "stable" else f"{deployment}-{track}"
