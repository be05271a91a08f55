"""One track of a release in the cluster: its Deployment, the revisions of it, and its pods.

A revision is a pod template. Deploying, promoting, rolling back and undoing all come down to
one thing: the Deployment gets another template, whole, and is watched until it runs.
"""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from release.kubernetes.kubectl import ClusterError, NotFound, get, kubectl
from release.kubernetes.manifests import (
    CONTRACT_SHA256,
    IMAGE_ID,
    MODEL,
    SOURCE,
    Track,
    instance_of,
    previous_instance_of,
    track_name,
)
from serving.settings import Mode

_POLL_SECONDS = 0.5
_REVISION = "deployment.kubernetes.io/revision"
_HASH = "pod-template-hash"
# What a kubelet does not get out of by itself.
_STUCK = {
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ImagePullBackOff",
    "InvalidImageName",
}
_LOG_LINES = 20
# The grace period of the pods, and what the cluster needs.
_END_SECONDS = 120
# On an autoscaler: what was before a fresh replica was added.
_BEFORE_FRESH = "inference/before-fresh"
_SHORT = 12
_UNKNOWN = "unknown"


class RolloutError(ClusterError):
    """Why a template does not run."""


@dataclass(frozen=True)
class Revision:
    """A pod template, and what it says of the release: image, model and contract."""

    template: dict[str, Any]

    @classmethod
    def of(cls, owner: dict[str, Any]) -> Self:
        """Return the template of a Deployment or of a ReplicaSet, without the latter's mark."""
        template = owner["spec"]["template"]
        metadata = template["metadata"]
        labels = {key: value for key, value in metadata["labels"].items() if key != _HASH}
        return cls({**template, "metadata": {**metadata, "labels": labels}})

    @property
    def image(self) -> str:
        """The server's image."""
        return str(self.server["image"])

    @property
    def server(self) -> dict[str, Any]:
        """The server's container."""
        found: dict[str, Any] = self.template["spec"]["containers"][0]
        return found

    @property
    def model(self) -> str:
        """The model, as `iris/1`."""
        return self._said(MODEL)

    @property
    def model_name(self) -> str:
        """The model without its version, as `iris`."""
        return self.model.partition("/")[0]

    @property
    def contract_sha256(self) -> str:
        """The sha256 of its contract.json."""
        return self._said(CONTRACT_SHA256)

    @property
    def image_id(self) -> str:
        """What Docker called the image's content where it was deployed."""
        return self._said(IMAGE_ID)

    @property
    def source(self) -> str:
        """Where its servers get the model."""
        return self._said(SOURCE)

    @property
    def parts(self) -> tuple[str, str]:
        """What makes it the release that it is."""
        return self.image_id, self.contract_sha256

    def __str__(self) -> str:
        image = re.sub(r"(@sha256:.{12}).*", r"\1", self.image)
        return f"{self.model} (contract {self.contract_sha256[:_SHORT]}) in {image}"

    def on(self, track: Track) -> dict[str, Any]:
        """Return the template for another track."""
        metadata = self.template["metadata"]
        labels = {**metadata["labels"], "track": track}
        return {**self.template, "metadata": {**metadata, "labels": labels}}

    def _said(self, annotation: str) -> str:
        return str(self.template["metadata"].get("annotations", {}).get(annotation, _UNKNOWN))


class Deployment:
    """A track's Deployment and what belongs to it, as the cluster has them at the moment."""

    def __init__(self, namespace: str, instance: str, track: Track = "stable") -> None:
        self.namespace = namespace
        self.instance = instance
        self.track: Track = track
        self.name = track_name(instance, track)

    def read(self) -> dict[str, Any]:
        """Return the object. Raises NotFound and ClusterError."""
        found: dict[str, Any] = get(f"deployment/{self.name}", *self._in)
        return found

    def exists(self) -> bool:
        """Return whether there is one."""
        try:
            self.read()
        except NotFound:
            return False
        return True

    def current(self) -> Revision:
        """Return what it should run. Raises NotFound."""
        return Revision.of(self.read())

    def replicas(self) -> int:
        """Return how many it should have."""
        return int(self.read()["spec"]["replicas"])

    def before(self) -> Revision:
        """Return the previous release of its model.

        Skips releases of other models, which older versions of this project deployed under the
        same name. Raises ClusterError if the cluster keeps no previous release.
        """
        revisions = self.revisions()
        for revision in revisions[1:]:
            if revision.model_name == revisions[0].model_name:
                return revision
        raise ClusterError(f"{self.name}: there is no release before this one to go back to")

    def revisions(self) -> list[Revision]:
        """Return all that the cluster keeps, the current one first."""
        return [Revision.of(one) for one in self._replica_sets()]

    def run(self, template: dict[str, Any]) -> None:
        """Give it another template, whole: nothing of the one before stays."""
        change = [{"op": "replace", "path": "/spec/template", "value": template}]
        self._patch("deployment", change)

    def apply(self, manifest: dict[str, Any]) -> None:
        """Make it what a manifest says, whole; its replicas are its autoscaler's."""
        try:
            verb, replicas = "replace", self.replicas()
        except NotFound:
            # It looks every 15 seconds only.
            verb, replicas = "create", self._scaler()["spec"]["minReplicas"]
        manifest = {**manifest, "spec": {**manifest["spec"], "replicas": replicas}}
        kubectl(verb, "--filename=-", *self._in, stdin=json.dumps(manifest))

    def forget(self, revision: Revision) -> None:
        """Remove a revision, so that no rollback brings it back."""
        for one in self._replica_sets()[1:]:
            if Revision.of(one) == revision:
                name = one["metadata"]["name"]
                kubectl("delete", f"replicaset/{name}", "--wait=false", *self._in)

    def scale(self, replicas: int) -> None:
        """Have so many replicas, and its autoscaler no fewer; returns before they are there."""
        most = max(replicas, self._scaler()["spec"]["maxReplicas"])
        self._set_scaler(replicas, most)
        self._set_replicas(replicas)

    def add_fresh(self) -> None:
        """Start one replica more, until end_fresh(), if that is not so; it is not there yet."""
        if self._before_fresh():
            return
        spec, replicas = self._scaler()["spec"], self.replicas()
        before = {
            "least": spec["minReplicas"],
            "most": spec["maxReplicas"],
            "pods": [pod["metadata"]["name"] for pod in self.pods()],
        }
        self._annotate_scaler(f"{_BEFORE_FRESH}={json.dumps(before)}")
        self._set_scaler(replicas + 1, max(replicas + 1, before["most"]))
        self._set_replicas(replicas + 1)

    def end_fresh(self) -> None:
        """Give back what add_fresh() has added, if it has."""
        if before := self._before_fresh():
            self._set_scaler(before["least"], before["most"])
            self._set_replicas(max(before["least"], self.replicas() - 1))
            self._annotate_scaler(f"{_BEFORE_FRESH}-")

    def fresh_pods(self) -> list[dict[str, Any]]:
        """Return the pods that were made since add_fresh()."""
        old = (self._before_fresh() or {}).get("pods", [])
        return [pod for pod in self.pods() if pod["metadata"]["name"] not in old]

    def remove(self) -> None:
        """Remove it and its autoscaler, and return once its pods have ended."""
        kubectl(
            "delete", f"deployment/{self.name}", f"horizontalpodautoscaler/{self.name}",
            "--ignore-not-found", "--cascade=foreground", *self._in, seconds=_END_SECONDS,
        )  # fmt: skip

    def pods(self) -> list[dict[str, Any]]:
        """Return its pods, the oldest first, without those that are ending."""
        select = f"app.kubernetes.io/instance={self.instance},track={self.track}"
        found = get("pods", f"--selector={select}", *self._in)["items"]
        left = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
        return sorted(left, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def routed_pods(self) -> set[str]:
        """Return the names of the pods, of any track, to which the Service routes requests."""
        select = f"--selector=kubernetes.io/service-name={self.instance}"
        slices = get("endpointslices", select, *self._in)["items"]
        # `endpoints` is null in a slice without any.
        endpoints = [endpoint for part in slices for endpoint in part.get("endpoints") or ()]
        return {
            endpoint["targetRef"]["name"]
            for endpoint in endpoints
            if endpoint["conditions"].get("ready")
        }

    def wait(self, seconds: float) -> None:
        """Return once every replica runs the current template and is available.

        Raises RolloutError as soon as it is known that they never will, and after a while.
        """
        deadline = time.monotonic() + seconds
        while True:
            deployment = self.read()
            if self._complete(deployment):
                return
            if why := self._hopeless(deployment):
                raise RolloutError(f"{self.name}: {why}")
            if time.monotonic() > deadline:
                raise RolloutError(f"{self.name}: not complete within {seconds:g} s")
            time.sleep(_POLL_SECONDS)

    def report(self) -> str:
        """Return events and last words of the pods of the current template that are not ready."""
        lines = list(self._events("Deployment", self.name))
        for pod in self._new_pods():
            if not is_ready(pod):
                name = pod["metadata"]["name"]
                lines += [f"pod {name}: {'; '.join(_states(pod)) or 'not ready'}"]
                lines += self._events("Pod", name)
                lines += self._last_words(name)
        return "\n".join(lines)

    @cached_property
    def _in(self) -> tuple[str]:
        return (f"--namespace={self.namespace}",)

    def _scaler(self) -> dict[str, Any]:
        found: dict[str, Any] = get(f"horizontalpodautoscaler/{self.name}", *self._in)
        return found

    def _before_fresh(self) -> dict[str, Any] | None:
        """Return the autoscaler's limits and the pods from before a fresh replica was added."""
        note = self._scaler()["metadata"].get("annotations", {}).get(_BEFORE_FRESH)
        return json.loads(note) if note else None

    def _annotate_scaler(self, note: str) -> None:
        kubectl("annotate", f"horizontalpodautoscaler/{self.name}", note, *self._in)

    def _set_scaler(self, least: int, most: int) -> None:
        fields = {"minReplicas": least, "maxReplicas": most}
        change = [
            {"op": "replace", "path": f"/spec/{name}", "value": value}
            for name, value in fields.items()
        ]
        self._patch("horizontalpodautoscaler", change)

    def _set_replicas(self, replicas: int) -> None:
        kubectl("scale", f"deployment/{self.name}", f"--replicas={replicas}", *self._in)

    def _patch(self, kind: str, change: list[dict[str, Any]]) -> None:
        patch = f"--patch={json.dumps(change)}"
        kubectl("patch", f"{kind}/{self.name}", "--type=json", patch, *self._in)

    def _replica_sets(self) -> list[dict[str, Any]]:
        """Return those of this Deployment, the newest revision first."""
        uid = self.read()["metadata"]["uid"]
        owned = [
            one
            for one in get("replicasets", *self._in)["items"]
            if any(owner["uid"] == uid for owner in one["metadata"].get("ownerReferences", []))
        ]
        return sorted(owned, key=_revision, reverse=True)

    def _new_pods(self) -> list[dict[str, Any]]:
        sets = self._replica_sets()
        if not sets:
            return []
        wanted = sets[0]["metadata"]["labels"][_HASH]
        return [pod for pod in self.pods() if pod["metadata"]["labels"].get(_HASH) == wanted]

    def _complete(self, deployment: dict[str, Any]) -> bool:
        status, wanted = deployment["status"], deployment["spec"]["replicas"]
        if status.get("observedGeneration", 0) < deployment["metadata"]["generation"]:
            return False
        return bool(
            wanted >= self._scaler()["spec"]["minReplicas"]
            and status.get("updatedReplicas", 0)
            == status.get("replicas", 0)
            == status.get("availableReplicas", 0)
            == wanted
        )

    def _hopeless(self, deployment: dict[str, Any]) -> str | None:
        if deployment["status"].get("observedGeneration", 0) < deployment["metadata"]["generation"]:
            return None
        for condition in deployment["status"].get("conditions", []):
            late = condition.get("reason") == "ProgressDeadlineExceeded"
            if late or (condition["type"] == "ReplicaFailure" and condition["status"] == "True"):
                return str(condition["message"])
        for pod in self._new_pods():
            if stuck := [state for state in _states(pod) if state.split(":")[1].strip() in _STUCK]:
                return f"pod {pod['metadata']['name']}: {'; '.join(stuck)}"
        return None

    def _events(self, kind: str, name: str) -> Iterator[str]:
        select = f"involvedObject.kind={kind},involvedObject.name={name}"
        found = get("events", f"--field-selector={select}", *self._in)
        for event in found["items"]:
            if event.get("type") == "Warning":
                yield f"  {event['reason']}: {event['message'].strip()}"

    def _last_words(self, pod: str) -> Iterator[str]:
        tail = f"--tail={_LOG_LINES}"
        for which in ("--previous=true", "--previous=false"):
            for container in ("pull", "server"):
                try:
                    said = kubectl("logs", pod, f"--container={container}", which, tail, *self._in)
                except ClusterError:
                    continue
                yield from (f"  {container}: {line}" for line in said.splitlines())


def find_instance(namespace: str, model: str, mode: Mode) -> str:
    """Return the name of a model's release in the cluster; if there is none, a new name.

    Older versions of this project gave `my_model` and `my-model` the same name: the annotation on
    the pod template says which of them the release belongs to. Raises ClusterError if the new
    name belongs to a release of another model.
    """
    new = instance_of(model, mode)
    instances = dict.fromkeys((new, previous_instance_of(model, mode)))
    holders = {instance: _model_of(namespace, instance) for instance in instances}
    for instance, holder in holders.items():
        if holder == model:
            return instance
    if (holder := holders[new]) not in (None, _UNKNOWN):
        raise ClusterError(
            f"{new}: expected a release of {model}, got a release of {holder}, to which an older "
            f"version of this project gave the same name. Remove it first: "
            f"make destroy MODE={mode} MODEL=models/{holder}/1"
        )
    return new


def _model_of(namespace: str, instance: str) -> str | None:
    """Return the model of a release; None if the cluster has no release of that name."""
    try:
        return Deployment(namespace, instance).current().model_name
    except NotFound:
        return None


def _revision(replica_set: dict[str, Any]) -> int:
    return int(replica_set["metadata"].get("annotations", {}).get(_REVISION, 0))


def is_ready(pod: dict[str, Any]) -> bool:
    """Return whether a pod is given requests."""
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _states(pod: dict[str, Any]) -> list[str]:
    """Return why containers wait or have ended, as `server: CrashLoopBackOff`."""
    states = []
    for kind in ("initContainerStatuses", "containerStatuses"):
        for status in pod["status"].get(kind, []):
            waiting = status["state"].get("waiting", {})
            ended = status["state"].get("terminated", {})
            reason = waiting.get("reason") or (ended.get("exitCode") and ended.get("reason"))
            if reason:
                states.append(f"{status['name']}: {reason}")
    return states
