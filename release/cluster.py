"""Kubernetes, through the user's own kubectl: which images it still needs.

Called by prune.py, which removes nothing when a cluster is configured and cannot be asked.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SECONDS = 10
# How kubectl says that there is nobody to ask, which is no error here.
_NO_CONTEXT = "current-context is not set"


class ClusterError(Exception):
    """Why a configured cluster could not be asked."""


def needed_by_cluster() -> set[str] | None:
    """Return the images that pods use or that a ReplicaSet can bring back, by the cluster's names.

    Kubernetes itself deletes the ReplicaSets beyond `revisionHistoryLimit`, so each that is there
    is a revision that a rollback may want. Returns None where no cluster is configured. Raises
    ClusterError when the cluster of the current context does not answer in full.
    """
    if current_context() is None:
        return None
    answer = _kubectl("get", "pods,replicasets", "--all-namespaces", "--output=json")
    try:
        return {name for item in json.loads(answer)["items"] for name in _images(item)}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ClusterError(
            f"kubectl get: expected a list of pods and ReplicaSets, got {answer[:80]!r}"
        ) from None


def current_context() -> str | None:
    """Return which of the configured clusters kubectl asks; None where none is configured.

    Raises ClusterError when the configuration is there and cannot be read.
    """
    if shutil.which("kubectl") is None:
        if found := _configuration():
            raise ClusterError(
                f"kubectl: expected on PATH because {found} may name a cluster, got none"
            )
        return None
    try:
        return _kubectl("config", "current-context").strip()
    except ClusterError as error:
        if _NO_CONTEXT in str(error):
            return None
        raise


def _configuration() -> Path | None:
    """Return the first file with content among those that kubectl would read."""
    paths = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    files = [Path(path) for path in paths.split(os.pathsep) if path]
    return next((file for file in files if file.is_file() and file.stat().st_size), None)


def _kubectl(*arguments: str) -> str:
    """Return what kubectl printed. Raises ClusterError with its last words."""
    # Files, not pipes: a credential plugin that outlives kubectl would keep a pipe open.
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as said:
        try:
            done = subprocess.run(  # noqa: S603 - the user's own kubectl
                ["kubectl", *arguments],  # noqa: S607
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=said,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"kubectl {arguments[0]}: no answer within {_SECONDS} s") from None
        except OSError as error:
            raise ClusterError(f"kubectl: cannot be run: {error.strerror}") from None
        printed.seek(0)
        said.seek(0)
        if done.returncode:
            why = said.read().strip() or f"exit status {done.returncode}"
            raise ClusterError(f"kubectl {arguments[0]}: {why}")
        return printed.read()


def _images(item: dict[str, Any]) -> Iterator[str]:
    """Yield the images of a pod, or of the pods that a ReplicaSet makes."""
    spec = item["spec"]
    pod = spec["template"]["spec"] if item["kind"] == "ReplicaSet" else spec
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        yield from (container["image"] for container in pod.get(kind, []) if "image" in container)
    images = [volume["image"] for volume in pod.get("volumes", []) if "image" in volume]
    yield from (image["reference"] for image in images if "reference" in image)
    # What a tag meant when the pod started, should it have moved since.
    for kind in ("containerStatuses", "initContainerStatuses"):
        for status in item.get("status", {}).get(kind, []):
            if image := status.get("imageID"):
                yield image.rpartition("://")[2]
