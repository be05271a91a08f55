"""One track of a deployment in the cluster: its Deployment object, autoscaler, and pods.

A revision is a pod template. Deploying, promoting, and rolling back are the same operation: the
Deployment object gets another template as a whole, and the rollout is watched until it ends.
"""

import json
import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from release.kubernetes import annotations
from release.kubernetes.annotations import BEFORE_FRESH
from release.kubernetes.deployment_name import (
    TrackName,
    deployment_name,
    former_deployment_name,
    object_name,
)
from release.kubernetes.errors import ReleaseError, RolloutError
from release.kubernetes.kubectl import ClusterError, NotFoundError, get, kubectl
from release.kubernetes.manifests import VERSION_LABEL
from release.kubernetes.revision import POD_TEMPLATE_HASH, Revision
from serving.settings import Mode

_POLL_SECONDS = 0.5
_REVISION = "deployment.kubernetes.io/revision"
# Reasons for which a container waits and that do not go away without a change.
_PERMANENT_REASONS = {
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ImagePullBackOff",
    "InvalidImageName",
}
_LOG_LINES = 20
# terminationGracePeriodSeconds of the pods (30), and time for the cluster to delete the objects.
_DELETE_SECONDS = 120
_UNKNOWN_MODEL = "unknown"


class Track:
    """The objects of a track. Every method reads the current state from the cluster."""

    def __init__(self, namespace: str, deployment: str, track: TrackName = "stable") -> None:
        self.namespace = namespace
        # The name of the deployment, which is also that of its Service: iris-model-load.
        self.deployment = deployment
        self.track: TrackName = track
        # The name of the Deployment object and the autoscaler: iris-model-load-canary.
        self.name = object_name(deployment, track)

    def read(self) -> dict[str, Any]:
        """Return the Deployment object. Raises NotFoundError and ClusterError."""
        deployment: dict[str, Any] = get(f"deployment/{self.name}", *self._namespace)
        return deployment

    def exists(self) -> bool:
        """Return whether the cluster has the Deployment object."""
        try:
            self.read()
        except NotFoundError:
            return False
        return True

    def current(self) -> Revision:
        """Return the current revision. Raises NotFoundError."""
        return Revision.of(self.read())

    def replicas(self) -> int:
        """Return the desired number of replicas."""
        return int(self.read()["spec"]["replicas"])

    def previous(self) -> Revision:
        """Return the previous revision of the same model.

        Revisions of other models are skipped: earlier versions of this project could deploy two
        models under one name. Raises ReleaseError if the cluster has no previous revision.
        """
        revisions = self.revisions()
        for revision in revisions[1:]:
            if revision.model_name == revisions[0].model_name:
                return revision
        raise ReleaseError(
            f"{self.name}: the cluster has no previous release to roll back to. "
            "Deploy the version that you want with `make deploy`."
        )

    def revisions(self) -> list[Revision]:
        """Return the rollout history, the current revision first."""
        return [Revision.of(replica_set) for replica_set in self._replica_sets()]

    def run(self, template: dict[str, Any]) -> None:
        """Replace the pod template as a whole, so that nothing of the previous one remains."""
        change = [{"op": "replace", "path": "/spec/template", "value": template}]
        if version := Revision(template).model_version:
            # In a JSON patch `~1` is a slash.
            label = f"/metadata/labels/{VERSION_LABEL.replace('/', '~1')}"
            change.append({"op": "add", "path": label, "value": version})
        self._patch("deployment", change)

    def apply(self, manifest: dict[str, Any]) -> None:
        """Create or replace the Deployment object; the number of replicas stays as it is."""
        try:
            verb, replicas = "replace", self.replicas()
        except NotFoundError:
            # An autoscaler acts every 15 s only, so start with its minimum.
            verb, replicas = "create", self._scaler()["spec"]["minReplicas"]
        # `kubectl apply` would keep fields that other tools added to the template; `replace` does
        # not, so a revision is exactly what the manifests say.
        manifest = {**manifest, "spec": {**manifest["spec"], "replicas": replicas}}
        kubectl(verb, "--filename=-", *self._namespace, stdin=json.dumps(manifest))

    def forget(self, revision: Revision) -> None:
        """Delete a revision from the rollout history, so that no rollback returns to it."""
        for replica_set in self._replica_sets()[1:]:
            if Revision.of(replica_set) == revision:
                name = replica_set["metadata"]["name"]
                kubectl("delete", f"replicaset/{name}", "--wait=false", *self._namespace)

    def scale(self, replicas: int) -> None:
        """Set the number of replicas, which is also the autoscaler's minimum; do not wait."""
        maximum = max(replicas, self._scaler()["spec"]["maxReplicas"])
        self._set_scaler(replicas, maximum)
        self._set_replicas(replicas)

    def add_fresh(self) -> None:
        """Start one more replica, for comparison with a canary of the same age; do not wait.

        The autoscaler's limits and the pods from before are stored in an annotation, so that
        another process can undo it. Does nothing if a fresh replica was added before.
        """
        if self._before_fresh():
            return
        spec, replicas = self._scaler()["spec"], self.replicas()
        # The keys are those of earlier versions, which may have added the replica.
        before = {
            "least": spec["minReplicas"],
            "most": spec["maxReplicas"],
            "pods": [pod["metadata"]["name"] for pod in self.pods()],
        }
        self._annotate_scaler(f"{BEFORE_FRESH}={json.dumps(before)}")
        self._set_scaler(replicas + 1, max(replicas + 1, before["most"]))
        self._set_replicas(replicas + 1)

    def remove_fresh(self) -> None:
        """Undo add_fresh(); do nothing without a fresh replica."""
        if before := self._before_fresh():
            # Scale before the annotation is removed: if this process ends, another can repeat it.
            self._set_scaler(before["least"], before["most"])
            self._set_replicas(max(before["least"], self.replicas() - 1))
            self._annotate_scaler(f"{BEFORE_FRESH}-", f"{annotations.former_name(BEFORE_FRESH)}-")

    def fresh_pods(self) -> list[dict[str, Any]]:
        """Return the pods that were created since add_fresh()."""
        old = (self._before_fresh() or {}).get("pods", [])
        return [pod for pod in self.pods() if pod["metadata"]["name"] not in old]

    def remove(self) -> None:
        """Delete the Deployment object and the autoscaler; return once the pods are gone."""
        kubectl(
            "delete", f"deployment/{self.name}", f"horizontalpodautoscaler/{self.name}",
            "--ignore-not-found", "--cascade=foreground", *self._namespace, seconds=_DELETE_SECONDS,
        )  # fmt: skip

    def pods(self) -> list[dict[str, Any]]:
        """Return the pods that are not terminating, the oldest first."""
        select = f"app.kubernetes.io/instance={self.deployment},track={self.track}"
        pods = get("pods", f"--selector={select}", *self._namespace)["items"]
        running = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        return sorted(running, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def routed_pods(self) -> set[str]:
        """Return the names of the pods, of any track, to which the Service routes requests."""
        select = f"--selector=kubernetes.io/service-name={self.deployment}"
        slices = get("endpointslices", select, *self._namespace)["items"]
        # `endpoints` is null in a slice without any.
        endpoints = [endpoint for part in slices for endpoint in part.get("endpoints") or ()]
        return {
            endpoint["targetRef"]["name"]
            for endpoint in endpoints
            if endpoint["conditions"].get("ready")
        }

    def wait(self, seconds: float) -> None:
        """Return once every replica runs the current revision and is available.

        Raises RolloutError as soon as the rollout cannot succeed any more, and after a timeout.
        """
        deadline = time.monotonic() + seconds
        while True:
            deployment = self.read()
            if self._is_complete(deployment):
                return
            if reason := self._failure(deployment):
                raise RolloutError(f"{self.name}: {reason}")
            if time.monotonic() > deadline:
                raise RolloutError(f"{self.name}: not complete within {seconds:g} s")
            time.sleep(_POLL_SECONDS)

    def failure_report(self) -> str:
        """Return events and last log lines of the current revision's pods that are not ready."""
        lines = list(self._events("Deployment", self.name))
        for pod in self._current_pods():
            if not is_ready(pod):
                name = pod["metadata"]["name"]
                lines += [f"pod {name}: {'; '.join(_container_states(pod)) or 'not ready'}"]
                lines += self._events("Pod", name)
                lines += self._last_log_lines(name)
        return "\n".join(lines)

    @cached_property
    def _namespace(self) -> tuple[str]:
        """Kubectl's option for the namespace."""
        return (f"--namespace={self.namespace}",)

    def _scaler(self) -> dict[str, Any]:
        scaler: dict[str, Any] = get(f"horizontalpodautoscaler/{self.name}", *self._namespace)
        return scaler

    def _before_fresh(self) -> dict[str, Any] | None:
        """Return the autoscaler's limits and the pods from before a fresh replica was added."""
        value = annotations.read(self._scaler()["metadata"], BEFORE_FRESH)
        return json.loads(value) if value else None

    def _annotate_scaler(self, *changes: str) -> None:
        kubectl("annotate", f"horizontalpodautoscaler/{self.name}", *changes, *self._namespace)

    def _set_scaler(self, minimum: int, maximum: int) -> None:
        fields = {"minReplicas": minimum, "maxReplicas": maximum}
        change = [
            {"op": "replace", "path": f"/spec/{name}", "value": value}
            for name, value in fields.items()
        ]
        self._patch("horizontalpodautoscaler", change)

    def _set_replicas(self, replicas: int) -> None:
        kubectl("scale", f"deployment/{self.name}", f"--replicas={replicas}", *self._namespace)

    def _patch(self, kind: str, change: list[dict[str, Any]]) -> None:
        patch = f"--patch={json.dumps(change)}"
        kubectl("patch", f"{kind}/{self.name}", "--type=json", patch, *self._namespace)

    def _replica_sets(self) -> list[dict[str, Any]]:
        """Return the ReplicaSets of this track, the newest revision first."""
        uid = self.read()["metadata"]["uid"]
        owned = [
            replica_set
            for replica_set in get("replicasets", *self._namespace)["items"]
            if any(
                owner["uid"] == uid for owner in replica_set["metadata"].get("ownerReferences", [])
            )
        ]
        return sorted(owned, key=_revision_number, reverse=True)

    def _current_pods(self) -> list[dict[str, Any]]:
        """Return the pods of the current revision."""
        replica_sets = self._replica_sets()
        if not replica_sets:
            return []
        current = replica_sets[0]["metadata"]["labels"][POD_TEMPLATE_HASH]
        return [
            pod
            for pod in self.pods()
            if pod["metadata"]["labels"].get(POD_TEMPLATE_HASH) == current
        ]

    def _is_complete(self, deployment: dict[str, Any]) -> bool:
        status, desired = deployment["status"], deployment["spec"]["replicas"]
        # Until the controller has seen the new template, the status describes the old one.
        if status.get("observedGeneration", 0) < deployment["metadata"]["generation"]:
            return False
        return bool(
            desired >= self._scaler()["spec"]["minReplicas"]
            and status.get("updatedReplicas", 0)
            == status.get("replicas", 0)
            == status.get("availableReplicas", 0)
            == desired
        )

    def _failure(self, deployment: dict[str, Any]) -> str | None:
        """Return why the rollout cannot succeed any more, None while it still can."""
        if deployment["status"].get("observedGeneration", 0) < deployment["metadata"]["generation"]:
            return None
        for condition in deployment["status"].get("conditions", []):
            is_late = condition.get("reason") == "ProgressDeadlineExceeded"
            has_failed = condition["type"] == "ReplicaFailure" and condition["status"] == "True"
            if is_late or has_failed:
                return str(condition["message"])
        for pod in self._current_pods():
            states = [
                state
                for state in _container_states(pod)
                if state.split(":")[1].strip() in _PERMANENT_REASONS
            ]
            if states:
                return f"pod {pod['metadata']['name']}: {'; '.join(states)}"
        return None

    def _events(self, kind: str, name: str) -> Iterator[str]:
        select = f"involvedObject.kind={kind},involvedObject.name={name}"
        events = get("events", f"--field-selector={select}", *self._namespace)
        for event in events["items"]:
            if event.get("type") == "Warning":
                yield f"  {event['reason']}: {event['message'].strip()}"

    def _last_log_lines(self, pod: str) -> Iterator[str]:
        tail = f"--tail={_LOG_LINES}"
        # The previous run first: after a crash it has the reason.
        for run in ("--previous=true", "--previous=false"):
            for container in ("pull", "server"):
                options = (f"--container={container}", run, tail, *self._namespace)
                try:
                    log = kubectl("logs", pod, *options)
                except ClusterError:
                    continue
                yield from (f"  {container}: {line}" for line in log.splitlines())


def find_deployment(namespace: str, model: str, mode: Mode) -> str:
    """Return the name of a model's deployment in the cluster, or the name for a new one.

    Earlier versions of this project gave `my_model` and `my-model` the same name: the annotation
    on the pod template says to which of them the deployment belongs. Raises ReleaseError if the
    name for a new deployment belongs to another model.
    """
    new_name = deployment_name(model, mode)
    names = dict.fromkeys((new_name, former_deployment_name(model, mode)))
    models = {name: _model_of(namespace, name) for name in names}
    for name, deployed_model in models.items():
        if deployed_model == model:
            return name
    if (other := models[new_name]) not in (None, _UNKNOWN_MODEL):
        raise ReleaseError(
            f"{new_name}: expected a deployment of {model}, got a deployment of {other}: an "
            "earlier version of this project gave both the same name. Remove it first: "
            f"make destroy MODE={mode} MODEL=models/{other}/1"
        )
    return new_name


def _model_of(namespace: str, deployment: str) -> str | None:
    """Return the model of a deployment, None if the cluster has none of that name."""
    try:
        return Track(namespace, deployment).current().model_name
    except NotFoundError:
        return None


def _revision_number(replica_set: dict[str, Any]) -> int:
    return int(replica_set["metadata"].get("annotations", {}).get(_REVISION, 0))


def is_ready(pod: dict[str, Any]) -> bool:
    """Return whether a pod is ready, so that a Service routes requests to it."""
    conditions = pod["status"].get("conditions", [])
    return any(
        condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions
    )


def _container_states(pod: dict[str, Any]) -> list[str]:
    """Return why containers wait or have failed, such as `server: CrashLoopBackOff`."""
    states = []
    for kind in ("initContainerStatuses", "containerStatuses"):
        for status in pod["status"].get(kind, []):
            waiting = status["state"].get("waiting", {})
            terminated = status["state"].get("terminated", {})
            failure = terminated.get("exitCode") and terminated.get("reason")
            if reason := waiting.get("reason") or failure:
                states.append(f"{status['name']}: {reason}")
    return states
