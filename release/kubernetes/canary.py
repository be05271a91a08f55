"""Run a canary: another release beside the stable one, whose share of requests grows in steps.

Nothing is installed in the cluster for this: both tracks are behind the same Service, so a
canary's share of the requests is its share of the replicas. It is promoted only if it was no
worse than fresh stable replicas in every step.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from artifact.contract import Contract
from release.kubernetes import golden
from release.kubernetes.canary_analysis import Counts, find_regressions
from release.kubernetes.deploy import ROLLOUT_SECONDS, apply, contract_of, wait_until_serving
from release.kubernetes.errors import ReleaseError, RolloutError
from release.kubernetes.golden import PredictionError
from release.kubernetes.kubectl import ClusterError
from release.kubernetes.manifests import Manifests
from release.kubernetes.port_forward import HTTP, MANAGEMENT, PortForwards
from release.kubernetes.resources import memory_bytes
from release.kubernetes.track import Track, is_ready

_POLL_SECONDS = 2
_ALL = 100


class InconclusiveError(Exception):
    """There was too little traffic to compare the canary with stable; it keeps running."""


@dataclass(frozen=True)
class CanaryPlan:
    """The steps of a canary and the conditions for each."""

    # Shares of the replicas in percent; 100 is the promotion.
    steps: Sequence[int]
    # How long each step is watched.
    bake_seconds: float
    # How many requests each track must answer in each step.
    min_requests: int
    # The share of the stable model's golden rows on which the canary must agree, 0 to 1.
    agreement: float


class Canary:
    """The canary track of a deployment, and the stable track beside it."""

    def __init__(self, namespace: str, deployment: str, store: str) -> None:
        self.stable = Track(namespace, deployment)
        self.track = Track(namespace, deployment, "canary")
        # The model store, which has the contracts of both releases.
        self._store = store

    def shift(self, manifests: Manifests, weight: int) -> None:
        """Start the canary or change its share; return once it serves.

        weight: its share in percent, 1 to 99, rounded to whole replicas. Raises ClusterError; a
        canary that does not become ready or does not predict correctly is removed.
        """
        if not 1 <= weight < _ALL:
            raise ReleaseError(f"WEIGHT: expected 1 to 99 percent, got {weight}")
        self._check(manifests)
        self._scale(manifests, self._replicas_for(weight))
        self._print_share(weight)

    def run(self, manifests: Manifests, plan: CanaryPlan) -> None:
        """Run all steps, comparing the canary with stable in each; promote it at 100.

        Raises ClusterError if the canary was aborted, and InconclusiveError if there was too
        little traffic: then the canary keeps running, and the same call continues at its share.
        """
        self._check(manifests)
        running = self.track.replicas() if self.track.exists() else 0
        # Now, so that the fresh stable replica has the age of the canary.
        self.stable.add_fresh()
        watched = 0
        for weight in plan.steps:
            if weight >= _ALL:
                self.promote()
                return
            replicas = self._replicas_for(weight)
            if replicas == watched or replicas < running:
                print(f"{weight} %: skipped, because it is no more replicas than before")
                continue
            self._scale(manifests, replicas)
            self._print_share(weight)
            self._bake(manifests.contract, plan)
            watched = replicas
        print(
            f"{self.track.name}: all steps are done. Run `make promote` or `make abort`.",
            flush=True,
        )

    def promote(self) -> None:
        """Make the canary's release the stable one, image and model, and remove the canary."""
        release, previous = self.track.current(), self.stable.current()
        print(f"{self.stable.name}: promoting {release}, replacing {previous}", flush=True)
        self.stable.run(release.on("stable"))
        wait_until_serving(self.stable, contract_of(release, self._store), previous)
        self._remove()
        print(f"{self.stable.name}: {release} is promoted and gets all requests.")

    def abort(self, reasons: Sequence[str] = ()) -> None:
        """Remove the canary; the stable release keeps serving. Raises NotFoundError without one."""
        release = self.track.current()
        self._remove()
        reason = f": {'; '.join(reasons)}" if reasons else ""
        print(f"{self.track.name}: aborted {release}{reason}", flush=True)
        print(f"{self.stable.name}: {self.stable.current()} keeps serving and gets all requests.")

    def _remove(self) -> None:
        self.track.remove()
        self.stable.remove_fresh()

    def _check(self, manifests: Manifests) -> None:
        """Reject a release that cannot be a canary of the stable one, before any change."""
        stable = self.stable.current()
        if manifests.contract.name != stable.model_name:
            raise ReleaseError(
                f"MODEL: expected a version of {stable.model_name}, got {manifests.model}"
            )
        if (manifests.source or "image") != stable.source:
            raise ReleaseError(
                f"SOURCE: expected the one of the stable release, {stable.source}, got "
                f"{manifests.source}. Change it with `make deploy`."
            )
        if manifests.release == stable.release:
            raise ReleaseError(f"The canary is the same release as the stable one: {stable}")
        if self.track.exists():
            self._check_running(manifests)
        if contract := contract_of(stable, self._store):
            _check_formats(manifests.contract, contract)

    def _check_running(self, manifests: Manifests) -> None:
        """Reject a release that differs from the canary that runs."""
        running = self.track.current()
        if manifests.release != running.release:
            raise ReleaseError(
                f"{self.track.name}: another canary is running: {running}. "
                "Run `make promote` or `make abort` first."
            )
        memory, limit = manifests.memory, running.memory_limit
        if memory and limit and memory_bytes(memory) != memory_bytes(limit):
            raise ReleaseError(
                f"MEMORY: expected {limit}, which the running canary {self.track.name} has, "
                f"got {memory}. Run `make abort` first."
            )

    def _replicas_for(self, weight: int) -> int:
        stable = self.stable.replicas()
        return max(1, round(stable * weight / (_ALL - weight)))

    def _print_share(self, weight: int) -> None:
        canary, stable = self.track.replicas(), self.stable.replicas()
        print(
            f"{self.track.name}: {self.track.current()} on {canary} of {canary + stable} "
            f"replicas, {_ALL * canary / (canary + stable):.0f} % (requested: {weight} %)",
            flush=True,
        )

    def _scale(self, manifests: Manifests, replicas: int) -> None:
        """Run this many canary replicas; return once all are ready and predict correctly.

        Aborts the canary and raises RolloutError if they do not.
        """
        if self.track.exists():
            self.track.scale(replicas)
        else:
            # The autoscaler owns the number of replicas, so the share is its minimum.
            def set_minimum(manifest: dict[str, Any]) -> None:
                if manifest["kind"] == "HorizontalPodAutoscaler":
                    manifest["spec"]["minReplicas"] = replicas
                    maximum = max(replicas, manifest["spec"]["maxReplicas"])
                    manifest["spec"]["maxReplicas"] = maximum

            apply(manifests, "canary", set_minimum)
        try:
            self.track.wait(ROLLOUT_SECONDS)
            # The fresh stable replica must be ready too before the two are compared.
            self.stable.wait(ROLLOUT_SECONDS)
            with PortForwards(self.track.namespace) as pods:
                self._check_golden_rows(pods, manifests.contract)
        except (RolloutError, PredictionError) as error:
            print(self.track.failure_report(), file=sys.stderr)
            self.abort([str(error)])
            raise RolloutError(f"{self.track.name}: aborted: {error}") from None

    def _check_golden_rows(
        self, pods: PortForwards, contract: Contract, min_agreement: float = 0.0
    ) -> None:
        """Check the canary's golden rows on each of its pods.

        min_agreement: the share of the stable release's golden rows on which each pod must agree.
        Raises PredictionError, and ClusterError if a pod is unreachable.
        """
        stable = contract_of(self.stable.current(), self._store) if min_agreement else None
        for name in self._pod_names():
            try:
                pods.call(name, HTTP, partial(golden.check, contract=contract))
                if stable:
                    check = partial(_check_agreement, contract=stable, min_agreement=min_agreement)
                    pods.call(name, HTTP, check)
            except (PredictionError, ClusterError):
                # The autoscaler may have removed the pod meanwhile, which is not an error.
                if name in self._pod_names():
                    raise

    def _pod_names(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.track.pods()]

    def _bake(self, contract: Contract, plan: CanaryPlan) -> None:
        """Watch one step. Aborts a canary that is worse and raises RolloutError.

        Raises InconclusiveError if there were too few requests.
        """
        with PortForwards(self.track.namespace) as pods:
            canary = _WatchedPods(pods, self.track.pods())
            stable = _WatchedPods(pods, self.stable.fresh_pods())
            reasons = self._watch(pods, canary, contract, plan)
            counts = canary.counts(), stable.counts()
        print(f"  canary: {counts[0]}\n  stable: {counts[1]}", flush=True)
        reasons += find_regressions(*counts, plan.min_requests)
        if reasons:
            self.abort(reasons)
            raise RolloutError(f"{self.track.name}: aborted: {'; '.join(reasons)}")
        if min(count.requests for count in counts) < plan.min_requests:
            raise InconclusiveError(
                f"{self.track.name}: inconclusive: in {plan.bake_seconds:g} s the canary answered "
                f"{counts[0].requests} requests and the fresh stable replicas "
                f"{counts[1].requests}; {plan.min_requests} each are needed (MIN_REQUESTS). The "
                "canary keeps running at this share. Run the same command to continue, or "
                "`make abort`."
            )

    def _watch(
        self, pods: PortForwards, canary: "_WatchedPods", contract: Contract, plan: CanaryPlan
    ) -> list[str]:
        """Return after the time of the step, or earlier with the reasons for an abort."""
        deadline = time.monotonic() + plan.bake_seconds
        while True:
            try:
                self._check_golden_rows(pods, contract, plan.agreement)
            except PredictionError as error:
                return [str(error)]
            if failed := canary.failed(self.track.pods()):
                return failed
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return []
            time.sleep(min(_POLL_SECONDS, remaining))


class _WatchedPods:
    """Pods, and their counts and restarts at the start of a step."""

    def __init__(self, connections: PortForwards, pods: list[dict[str, Any]]) -> None:
        self._connections = connections
        self._restarts = {pod["metadata"]["name"]: _restarts(pod) for pod in pods}
        self._before = {name: self._read(name) for name in self._restarts}

    def counts(self) -> Counts:
        """Return the counts since the start of the step, of the pods that still run."""
        total = Counts()
        for name, before in self._before.items():
            try:
                total += self._read(name) - before
            except (httpx.HTTPError, ClusterError):
                continue  # the autoscaler removed the pod, and its counts with it
        return total

    def _read(self, name: str) -> Counts:
        return self._connections.call(name, MANAGEMENT, Counts.read)

    def failed(self, pods: list[dict[str, Any]]) -> list[str]:
        """Return the pods that have restarted or are not ready any more, as text."""
        current = {pod["metadata"]["name"]: pod for pod in pods}
        return [
            f"pod {name}: restarted or not ready"
            for name, restarts in self._restarts.items()
            if name in current
            and (_restarts(current[name]) > restarts or not is_ready(current[name]))
        ]


def _check_agreement(url: str, contract: Contract, min_agreement: float) -> None:
    """Raise PredictionError if a server agrees on too small a share of the golden rows."""
    share = golden.agreement(url, contract)
    if share < min_agreement:
        raise PredictionError(
            f"golden rows of the stable model {contract.name}/{contract.version}: expected the "
            f"same result on {min_agreement:.0%}, got {share:.0%} (AGREEMENT)"
        )


def _restarts(pod: dict[str, Any]) -> int:
    statuses = pod["status"].get("containerStatuses", [])
    return sum(status["restartCount"] for status in statuses)


def _check_formats(canary: Contract, stable: Contract) -> None:
    """Reject a canary with other inputs or outputs: it gets requests that are meant for stable."""
    for kind, tensors, stable_tensors in (
        ("inputs", canary.inputs, stable.inputs),
        ("outputs", canary.outputs, stable.outputs),
    ):
        actual, expected = (
            ", ".join(f"{tensor.name} {tensor.signature}" for tensor in group)
            for group in (tensors, stable_tensors)
        )
        if actual != expected:
            raise ReleaseError(
                f"{canary.name}/{canary.version}: {kind}: expected {expected} as in version "
                f"{stable.version}, got {actual}. Clients of one cannot use the other: release "
                "it under another name."
            )
