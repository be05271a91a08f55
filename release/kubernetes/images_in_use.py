"""List the images that a cluster uses or needs for a rollback, which must not be deleted."""

from collections.abc import Iterator
from typing import Any

from release.kubernetes.kubectl import ClusterError, current_context, get


def images_in_use() -> set[str] | None:
    """Return the images of all pods and ReplicaSets, by the names that the cluster uses.

    Every ReplicaSet is a revision that a rollback may need: Kubernetes itself deletes those
    beyond `revisionHistoryLimit`. Returns None if no cluster is configured. Raises ClusterError
    if the cluster of the current context is unreachable or its response is incomplete.
    """
    if current_context() is None:
        return None
    response = get("pods,replicasets", "--all-namespaces")
    try:
        return {name for item in response["items"] for name in _images(item)}
    except (KeyError, TypeError, AttributeError):
        raise ClusterError(
            f"kubectl get: expected a list of pods and ReplicaSets, got {str(response)[:80]!r}"
        ) from None


def _images(item: dict[str, Any]) -> Iterator[str]:
    """Yield the images of a pod, or of the pod template of a ReplicaSet."""
    spec = item["spec"]
    pod = spec["template"]["spec"] if item["kind"] == "ReplicaSet" else spec
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        yield from (container["image"] for container in pod.get(kind, []) if "image" in container)
    images = [volume["image"] for volume in pod.get("volumes", []) if "image" in volume]
    yield from (image["reference"] for image in images if "reference" in image)
    # The digest that the pod runs: the tag may point to another image by now.
    for kind in ("containerStatuses", "initContainerStatuses"):
        for status in item.get("status", {}).get(kind, []):
            if image := status.get("imageID"):
                yield image.rpartition("://")[2]
