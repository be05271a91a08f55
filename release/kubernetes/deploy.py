"""Roll a release out, or back, and see that it predicts; else the one before goes on."""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import yaml

from artifact.contract import Contract, parse_contract
from artifact.reader import contract_in
from release.kubernetes import golden
from release.kubernetes.deployment import Deployment, Revision, RolloutError
from release.kubernetes.golden import WrongAnswer
from release.kubernetes.kubectl import ClusterError, NotFound, get, kubectl
from release.kubernetes.manifests import Manifests, Track, kustomize
from release.kubernetes.port_forward import HTTP, PortForwards

# Beyond the deadline of the manifests, which Kubernetes watches itself.
ROLLOUT_SECONDS = 1200
# Until the Service's endpoints are up to date.
_SETTLE_SECONDS = 15
_SETTLE_PAUSE_SECONDS = 0.5
_APPLY_SECONDS = 60
_DELETE_SECONDS = 120
_OBJECTS = (
    "deployments,horizontalpodautoscalers,services,poddisruptionbudgets,networkpolicies,"
    "serviceaccounts,persistentvolumeclaims"
)


def deploy(manifests: Manifests) -> None:
    """Roll out a release and return once the Service predicts with it.

    Raises ClusterError with what went wrong; the release before then serves on.
    """
    deployment = Deployment(manifests.namespace, manifests.instance)
    refuse_beside_canary(deployment)
    before = deployment.current() if deployment.exists() else None
    started = time.monotonic()
    apply(manifests, "stable")
    now = deployment.current()
    print(f"{deployment.name}: {f'from {before} ' if before else ''}to {now}", flush=True)
    settle(deployment, manifests.contract, before)
    print(
        f"{deployment.name}: {deployment.replicas()} replicas of {now} serve, the Service routes "
        f"to each, and each predicts right, after {time.monotonic() - started:.1f} s"
    )


def roll_back(namespace: str, instance: str, store: str) -> None:
    """Bring back the release before, image and model, and return once the Service predicts.

    Raises ClusterError, when there is none, and as deploy() does.
    """
    deployment = Deployment(namespace, instance)
    refuse_beside_canary(deployment)
    now, target = deployment.current(), deployment.before()
    print(f"{deployment.name}: from {now} back to {target}", flush=True)
    started = time.monotonic()
    deployment.run(target.template)
    settle(deployment, contract_of(target, store), now)
    print(f"{deployment.name}: {target} serves again, after {time.monotonic() - started:.1f} s")


def destroy(namespace: str, instance: str) -> None:
    """Remove every object of a release that deploy() and canary() created."""
    select = f"--selector=app.kubernetes.io/instance={instance}"
    where = f"--namespace={namespace}"
    print(kubectl("delete", _OBJECTS, select, where, seconds=_DELETE_SECONDS), end="")
    for volume in get("persistentvolumes", select)["items"]:
        # Volumes belong to the cluster: another namespace may have a release of the same name.
        if volume["spec"].get("claimRef", {}).get("namespace") == namespace:
            name = f"persistentvolume/{volume['metadata']['name']}"
            print(kubectl("delete", name, "--ignore-not-found", seconds=_DELETE_SECONDS), end="")


def refuse_beside_canary(deployment: Deployment) -> None:
    """Raise ClusterError while there is a canary, which compares itself with what serves."""
    canary = Deployment(deployment.namespace, deployment.instance, "canary")
    if canary.exists():
        raise ClusterError(
            f"{canary.name} is being tried beside it: {canary.current()}. "
            "`make promote` or `make abort` first."
        )


def apply(
    manifests: Manifests, track: Track, change: Callable[[dict[str, Any]], None] | None = None
) -> None:
    """Make the cluster's objects of a track what the manifests say.

    The canary's are its Deployment and its autoscaler; all others are the stable track's.
    change: is given each object before.
    """
    objects = list(yaml.safe_load_all(manifests.render(track)))
    if track == "stable":
        namespace = {"namespace": manifests.namespace, "resources": ["namespace"]}
        _apply(kustomize(namespace))
        _keep_volumes(objects, manifests.namespace)
    else:
        objects = [one for one in objects if one["metadata"]["labels"].get("track") == track]
    for one in objects:
        if change:
            change(one)
        if one["kind"] != "Deployment":
            _apply(json.dumps(one))
    (made,) = (one for one in objects if one["kind"] == "Deployment")
    Deployment(manifests.namespace, manifests.instance, track).apply(made)


def _keep_volumes(objects: list[dict[str, Any]], namespace: str) -> None:
    """Keep the names of volumes that claims in the cluster are bound to: they cannot change.

    Older versions of this project joined the namespace and the name by a dash in every case.
    """
    volumes = {one["metadata"]["name"]: one for one in objects if one["kind"] == "PersistentVolume"}
    for claim in (one for one in objects if one["kind"] == "PersistentVolumeClaim"):
        volume = volumes.get(claim["spec"].get("volumeName"))
        name = _volume_of(claim["metadata"]["name"], namespace)
        if volume and name:
            volume["metadata"]["name"] = claim["spec"]["volumeName"] = name


def _volume_of(claim: str, namespace: str) -> str | None:
    """Return the name of the volume of a claim; None if the cluster has no such claim."""
    try:
        spec = get(f"persistentvolumeclaim/{claim}", f"--namespace={namespace}")["spec"]
    except NotFound:
        return None
    name: str | None = spec.get("volumeName")
    return name


def contract_of(revision: Revision, store: str) -> Contract | None:
    """Return the contract of a release; None where the store does not have it any more."""
    held = contract_in(store, *revision.model.split("/"))
    if held is None or hashlib.sha256(held).hexdigest() != revision.contract_sha256:
        return None
    return parse_contract(held.decode(), revision.model)


def _apply(manifest: str) -> None:
    kubectl(
        "apply", "--server-side", "--force-conflicts", "--field-manager=inference", "--filename=-",
        stdin=manifest, seconds=_APPLY_SECONDS,
    )  # fmt: skip


def settle(deployment: Deployment, contract: Contract | None, before: Revision | None) -> None:
    """Return once a release serves; else say why, and let the one before serve on."""
    try:
        deployment.wait(ROLLOUT_SECONDS)
        _see_it_predict(deployment, contract)
    except (RolloutError, WrongAnswer) as error:
        failed = deployment.current()
        print(deployment.report(), file=sys.stderr)
        if before is None or before == failed:
            raise ClusterError(
                f"{error}\nIt is left as it is, to be looked at; `make destroy` removes it."
            ) from None
        deployment.run(before.template)
        deployment.wait(ROLLOUT_SECONDS)
        deployment.forget(failed)
        raise ClusterError(f"{error}\n{before} serves on, as if nothing had been.") from None


def _see_it_predict(deployment: Deployment, contract: Contract | None) -> None:
    """Wait until the Service routes to each replica and each predicts right. Raises WrongAnswer."""
    if contract is None:
        print("The store no longer has its contract: checked only whether it is ready.")
    deadline = time.monotonic() + _SETTLE_SECONDS
    with PortForwards(deployment.namespace) as pods:
        while True:
            try:
                return _check_replicas(deployment, contract, pods)
            except (WrongAnswer, ClusterError) as error:
                if time.monotonic() > deadline:
                    raise WrongAnswer(str(error)) from None
                time.sleep(_SETTLE_PAUSE_SECONDS)


def _check_replicas(deployment: Deployment, contract: Contract | None, pods: PortForwards) -> None:
    replicas = {pod["metadata"]["name"] for pod in deployment.pods()}
    if not replicas:
        raise WrongAnswer(f"{deployment.name}: expected replicas that predict, got none")
    if missing := replicas - deployment.routed_pods():
        raise WrongAnswer(
            f"Service {deployment.instance}: expected to route to every replica, does not route "
            f"to {', '.join(sorted(missing))}"
        )
    for replica in sorted(replicas):
        if contract is None:
            pods.ask(replica, HTTP, golden.check_ready)
        else:
            pods.ask(replica, HTTP, partial(golden.check, contract=contract))
