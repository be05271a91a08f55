"""Roll a release out or back, and check that every replica predicts what its contract says.

If the rollout fails, the previous revision is restored and keeps serving.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from artifact.contract import Contract, parse_contract
from artifact.reader import contract_in
from release.kubernetes import golden
from release.kubernetes.deployment_name import TrackName
from release.kubernetes.errors import ReleaseError, RolloutError
from release.kubernetes.golden import PredictionError
from release.kubernetes.kubectl import ClusterError, NotFoundError, get, kubectl
from release.kubernetes.manifests import Manifests, kustomize
from release.kubernetes.port_forward import HTTP, PortForwards
from release.kubernetes.revision import Revision
from release.kubernetes.track import Track

# Longer than progressDeadlineSeconds in k8s/ (900), which Kubernetes enforces itself.
ROLLOUT_SECONDS = 1200
# Endpoints of a Service are updated a moment after the pods.
_PREDICTION_SECONDS = 15
_PREDICTION_POLL_SECONDS = 0.5
_APPLY_SECONDS = 60
_DELETE_SECONDS = 120
_KINDS = (
    "deployments,horizontalpodautoscalers,services,poddisruptionbudgets,networkpolicies,"
    "serviceaccounts,persistentvolumeclaims"
)


def deploy(manifests: Manifests) -> None:
    """Roll out a release; return once every replica behind the Service predicts with it.

    Raises ClusterError if the rollout fails; the previous release then keeps serving.
    """
    track = Track(manifests.namespace, manifests.deployment)
    check_no_canary(track)
    previous = track.current() if track.exists() else None
    started = time.monotonic()
    apply(manifests, "stable")
    current = track.current()
    if previous:
        print(f"{track.name}: updating from {previous} to {current}", flush=True)
    else:
        print(f"{track.name}: deploying {current}", flush=True)
    wait_until_serving(track, manifests.contract, previous)
    seconds = time.monotonic() - started
    print(
        f"{track.name}: {track.replicas()} replicas serve {current}. The Service routes to each, "
        f"and each returns the expected predictions for the golden rows ({seconds:.1f} s)."
    )


def roll_back(namespace: str, deployment: str, store: str) -> None:
    """Return to the previous revision, image and model; return once every replica predicts.

    Raises ReleaseError if there is no previous revision, and ClusterError as deploy() does.
    """
    track = Track(namespace, deployment)
    check_no_canary(track)
    current, target = track.current(), track.previous()
    print(f"{track.name}: rolling back from {current} to {target}", flush=True)
    started = time.monotonic()
    track.run(target.template)
    wait_until_serving(track, contract_of(target, store), current)
    seconds = time.monotonic() - started
    print(f"{track.name}: {target} serves again ({seconds:.1f} s).")


def destroy(namespace: str, deployment: str) -> None:
    """Delete every object of a deployment, of both tracks."""
    select = f"--selector=app.kubernetes.io/instance={deployment}"
    output = kubectl("delete", _KINDS, select, f"--namespace={namespace}", seconds=_DELETE_SECONDS)
    print(output or f"{deployment}: nothing to delete in namespace {namespace}\n", end="")
    for volume in get("persistentvolumes", select)["items"]:
        # Volumes belong to the cluster: another namespace may have a deployment of this name.
        if volume["spec"].get("claimRef", {}).get("namespace") == namespace:
            name = f"persistentvolume/{volume['metadata']['name']}"
            print(kubectl("delete", name, "--ignore-not-found", seconds=_DELETE_SECONDS), end="")


def check_no_canary(stable: Track) -> None:
    """Raise ReleaseError while a canary runs: it is compared with the stable release."""
    canary = Track(stable.namespace, stable.deployment, "canary")
    if canary.exists():
        raise ReleaseError(
            f"{canary.name}: a canary is running: {canary.current()}. "
            "Run `make promote` or `make abort` first."
        )


def apply(
    manifests: Manifests, track: TrackName, change: Callable[[dict[str, Any]], None] | None = None
) -> None:
    """Create or update the objects of a track, and print which resources its servers get.

    A canary has only a Deployment object and an autoscaler of its own; it uses all other objects
    of the stable track.
    change: called with each object, which it may change, before the object is applied.
    """
    objects, resources = manifests.render(track)
    for line in resources:
        print(line, flush=True)
    if track == "stable":
        namespace = {"namespace": manifests.namespace, "resources": ["namespace"]}
        _apply(kustomize(namespace))
        _keep_volume_names(objects, manifests.namespace)
    else:
        objects = [item for item in objects if item["metadata"]["labels"].get("track") == track]
    for item in objects:
        if change:
            change(item)
        if item["kind"] != "Deployment":
            _apply(json.dumps(item))
    # Last, because its pods need the other objects.
    (deployment,) = (item for item in objects if item["kind"] == "Deployment")
    Track(manifests.namespace, manifests.deployment, track).apply(deployment)


def _keep_volume_names(objects: list[dict[str, Any]], namespace: str) -> None:
    """Use the names of the volumes to which existing claims are bound: they cannot be changed.

    Earlier versions of this project always joined the namespace and the name with a dash.
    """
    volumes = {
        item["metadata"]["name"]: item for item in objects if item["kind"] == "PersistentVolume"
    }
    for claim in (item for item in objects if item["kind"] == "PersistentVolumeClaim"):
        volume = volumes.get(claim["spec"].get("volumeName"))
        name = _volume_of(claim["metadata"]["name"], namespace)
        if volume and name:
            volume["metadata"]["name"] = claim["spec"]["volumeName"] = name


def _volume_of(claim: str, namespace: str) -> str | None:
    """Return the name of a claim's volume, None if the cluster has no such claim."""
    try:
        spec = get(f"persistentvolumeclaim/{claim}", f"--namespace={namespace}")["spec"]
    except NotFoundError:
        return None
    name: str | None = spec.get("volumeName")
    return name


def contract_of(revision: Revision, store: str) -> Contract | None:
    """Return the contract of a revision, None if the store no longer has exactly this one."""
    if revision.model_version is None:
        return None  # not deployed by this project, so its model is unknown
    stored = contract_in(store, revision.model_name, revision.model_version)
    if stored is None or hashlib.sha256(stored).hexdigest() != revision.contract_sha256:
        return None
    return parse_contract(stored.decode(), revision.model)


def _apply(manifest: str) -> None:
    # Other field managers own fields that a canary or a user patched, such as the limits of the
    # autoscaler. A deployment sets them again, so conflicts are forced.
    kubectl(
        "apply", "--server-side", "--force-conflicts", "--field-manager=inference", "--filename=-",
        stdin=manifest, seconds=_APPLY_SECONDS,
    )  # fmt: skip


def wait_until_serving(track: Track, contract: Contract | None, previous: Revision | None) -> None:
    """Return once every replica serves the current revision; on failure restore the previous.

    Prints the events and the last log lines of failing pods to stderr. Raises RolloutError.
    """
    try:
        track.wait(ROLLOUT_SECONDS)
        _wait_for_predictions(track, contract)
    except (RolloutError, PredictionError) as error:
        failed = track.current()
        print(track.failure_report(), file=sys.stderr)
        if previous is None or previous == failed:
            raise RolloutError(
                f"{error}\nThe failed deployment is kept so that you can inspect it; "
                "`make destroy` removes it."
            ) from None
        track.run(previous.template)
        track.wait(ROLLOUT_SECONDS)
        # Otherwise the failed revision would be the target of the next rollback.
        track.forget(failed)
        raise RolloutError(
            f"{error}\nThe rollout failed. The previous release keeps serving: {previous}"
        ) from None


def _wait_for_predictions(track: Track, contract: Contract | None) -> None:
    """Wait until the Service routes to each replica and each predicts as its contract says.

    Raises PredictionError.
    """
    if contract is None:
        print(
            "The store no longer has the contract of this release, so predictions are not "
            "compared with it: only readiness is checked."
        )
    deadline = time.monotonic() + _PREDICTION_SECONDS
    with PortForwards(track.namespace) as pods:
        while True:
            try:
                return _check_replicas(track, contract, pods)
            except (PredictionError, ClusterError) as error:
                if time.monotonic() > deadline:
                    raise PredictionError(str(error)) from None
                time.sleep(_PREDICTION_POLL_SECONDS)


def _check_replicas(track: Track, contract: Contract | None, pods: PortForwards) -> None:
    replicas = {pod["metadata"]["name"] for pod in track.pods()}
    if not replicas:
        raise PredictionError(f"{track.name}: expected replicas that predict, got none")
    if missing := replicas - track.routed_pods():
        raise PredictionError(
            f"Service {track.deployment}: expected to route to every replica, does not route "
            f"to {', '.join(sorted(missing))}"
        )
    for replica in sorted(replicas):
        if contract is None:
            pods.call(replica, HTTP, golden.check_ready)
        else:
            pods.call(replica, HTTP, partial(golden.check, contract=contract))
