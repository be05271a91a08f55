"""Which images a cluster still needs.

Called by prune.py, which removes nothing when a cluster is configured and cannot be asked.
"""

from collections.abc import Iterator
from typing import Any

from release.kubernetes.kubectl import ClusterError, current_context, get


def needed_by_cluster() -> set[str] | None:
    """Return the images that pods use or that a ReplicaSet can bring back, by the cluster's names.

    Kubernetes itself deletes the ReplicaSets beyond `revisionHistoryLimit`, so each that is there
    is a revision that a rollback may want. Returns None where no cluster is configured. Raises
    ClusterError when the cluster of the current context does not answer in full.
    """
    if current_context() is None:
        return None
    answer = get("pods,replicasets", "--all-namespaces")
    try:
        return {name for item in answer["items"] for name in _images(item)}
    except (KeyError, TypeError, AttributeError):
        raise ClusterError(
            f"kubectl get: expected a list of pods and ReplicaSets, got {str(answer)[:80]!r}"
        ) from None


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
