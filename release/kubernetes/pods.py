"""List the pods of this project in a cluster, of both modes and tracks, with their addresses."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from release.inventory.replica import Address
from release.kubernetes import annotations
from release.kubernetes.kubectl import current_context, get
from release.kubernetes.port_forward import MANAGEMENT, port_forward
from release.kubernetes.revision import Revision

# Releases of every version of this project have this label on their pods.
_SELECT = "app.kubernetes.io/name=inference"
_INSTANCE = "app.kubernetes.io/instance"
# The servers of `make run`.
_LOCAL = ("http://127.0.0.1:8000", "http://127.0.0.1:8001")
_ENDED_PHASES = ("Succeeded", "Failed")


def addresses(urls: Sequence[str]) -> list[Address]:
    """Return the addresses of URLS; without URLS, of every pod in the current context.

    Without URLS and without a cluster: the servers of `make run`. Raises ClusterError if the
    cluster is unreachable.
    """
    if urls or (context := current_context()) is None:
        return [Address.of(url) for url in urls or _LOCAL]
    print(f"All pods of this project in the cluster of the context {context}", file=sys.stderr)
    return [_address(pod) for pod in running_pods()]


def running_pods() -> list[dict[str, Any]]:
    """Return the pods of this project in all namespaces, except ended and terminating pods."""
    pods = get("pods", f"--selector={_SELECT}", "--all-namespaces")["items"]
    return [
        pod
        for pod in pods
        if "deletionTimestamp" not in pod["metadata"]
        and pod["status"]["phase"] not in _ENDED_PHASES
    ]


def running_releases() -> dict[str, Revision]:
    """Return the revision of every track in the cluster, by `namespace/deployment track`.

    Empty if no cluster is configured. Raises ClusterError if the cluster is unreachable.
    """
    if current_context() is None:
        return {}
    return {
        f"{_deployment(pod)} {pod['metadata']['labels'].get('track')}": Revision(
            {"metadata": pod["metadata"], "spec": pod["spec"]}
        )
        for pod in running_pods()
    }


def _deployment(pod: dict[str, Any]) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['labels'].get(_INSTANCE)}"


def _address(pod: dict[str, Any]) -> Address:
    metadata = pod["metadata"]
    namespace, name, labels = metadata["namespace"], metadata["name"], metadata["labels"]
    return Address(
        name=f"{namespace}/{name}",
        connect=partial(port_forward, namespace, name, MANAGEMENT),
        track=labels.get("track"),
        deployment=_deployment(pod),
        contract_sha256=annotations.read(metadata, annotations.CONTRACT_SHA256),
    )
