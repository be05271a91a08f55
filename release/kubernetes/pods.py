"""The pods of this project in a cluster, of both modes and tracks, and how to reach each."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from release.inventory.replica import Address
from release.kubernetes.deployment import Revision
from release.kubernetes.kubectl import current_context, get
from release.kubernetes.manifests import CONTRACT_SHA256
from release.kubernetes.port_forward import MANAGEMENT, port_forward

_SELECT = "app.kubernetes.io/name=inference"
_INSTANCE = "app.kubernetes.io/instance"
# Where `make run` serves.
_LOCAL = ("http://127.0.0.1:8000", "http://127.0.0.1:8001")
_ENDED = ("Succeeded", "Failed")


def addresses(urls: Sequence[str]) -> list[Address]:
    """Return the addresses of some URLS; without any, of every pod of the current context.

    Where no cluster is configured either, those of `make run`. Raises ClusterError when the
    cluster does not answer.
    """
    if urls or (context := current_context()) is None:
        return [Address.of(url) for url in urls or _LOCAL]
    print(f"All pods of this project in the cluster of the context {context}", file=sys.stderr)
    return [_address(pod) for pod in running_pods()]


def running_pods() -> list[dict[str, Any]]:
    """Return the pods of this project in all namespaces, but for those that end or have ended."""
    found = get("pods", f"--selector={_SELECT}", "--all-namespaces")["items"]
    return [
        pod
        for pod in found
        if "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] not in _ENDED
    ]


def running_releases() -> dict[str, Revision]:
    """Return what every track in the cluster runs, by `namespace/instance track`.

    Nothing where no cluster is configured. Raises ClusterError when it cannot be asked.
    """
    if current_context() is None:
        return {}
    return {
        f"{_instance(pod)} {pod['metadata']['labels'].get('track')}": Revision(
            {"metadata": pod["metadata"], "spec": pod["spec"]}
        )
        for pod in running_pods()
    }


def _instance(pod: dict[str, Any]) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['labels'].get(_INSTANCE)}"


def _address(pod: dict[str, Any]) -> Address:
    about = pod["metadata"]
    namespace, name, labels = about["namespace"], about["name"], about["labels"]
    return Address(
        name=f"{namespace}/{name}",
        connect=partial(port_forward, namespace, name, MANAGEMENT),
        track=labels.get("track"),
        instance=_instance(pod),
        contract_sha256=about.get("annotations", {}).get(CONTRACT_SHA256),
    )
