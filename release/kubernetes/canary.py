"""A canary: another release beside the running one, behind the same Service, shifted gradually.

Nothing is installed in the cluster for it, so its share of the requests is its share of the
replicas. It is promoted only after it was no worse than fresh stable replicas at every step.
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
from release.kubernetes.canary_analysis import Counts, worse
from release.kubernetes.deploy import ROLLOUT_SECONDS, apply, contract_of, settle
from release.kubernetes.deployment import Deployment, RolloutError, is_ready
from release.kubernetes.golden import WrongAnswer
from release.kubernetes.kubectl import ClusterError
from release.kubernetes.manifests import Manifests
from release.kubernetes.port_forward import HTTP, MANAGEMENT, PortForwards

_LOOK_SECONDS = 2
_WHOLE = 100


class InconclusiveError(ClusterError):
    """Why a canary could not be judged; it stays as it is."""


@dataclass(frozen=True)
class Trial:
    """How a canary is tried.

    steps: its shares in percent; 100 is the promotion. bake_seconds and min_requests: how long
    each step is watched, and how many requests each track must have answered meanwhile.
    agreement: on which share of the stable release's golden rows it must be of its opinion.
    """

    steps: Sequence[int]
    bake_seconds: float
    min_requests: int
    agreement: float


class Canary:
    """The canary of a release, beside the stable track.

    store: model store that has the contracts of both.
    """

    def __init__(self, namespace: str, instance: str, store: str) -> None:
        self.stable = Deployment(namespace, instance)
        self.deployment = Deployment(namespace, instance, "canary")
        self._store = store

    def shift(self, manifests: Manifests, weight: int) -> None:
        """Start the canary, or give it another share, and return once it serves.

        weight: its share in percent, 1 to 99; as near as whole replicas come. Raises
        ClusterError; a canary that does not come up, or is wrong, is gone then.
        """
        if not 1 <= weight < _WHOLE:
            raise ClusterError(f"WEIGHT: expected 1 to 99 percent, got {weight}")
        self._check(manifests)
        self._scale(manifests, self._replicas_for(weight))
        self._say_share(weight)

    def try_out(self, manifests: Manifests, trial: Trial) -> None:
        """Shift step by step, promoted after the last if that is 100, aborted when worse.

        Raises ClusterError when it was aborted, InconclusiveError when there is too little
        traffic to judge by: it stays as it is, and the same call goes on from there.
        """
        self._check(manifests)
        already = self.deployment.replicas() if self.deployment.exists() else 0
        # It starts together with the canary.
        self.stable.add_fresh()
        judged = 0
        for weight in trial.steps:
            if weight >= _WHOLE:
                self.promote()
                return
            replicas = self._replicas_for(weight)
            if replicas == judged or replicas < already:
                print(f"{weight} %: as many replicas as the step before, so nothing new to judge")
                continue
            self._scale(manifests, replicas)
            self._say_share(weight)
            self._bake(manifests.contract, trial)
            judged = replicas
        print(f"{self.deployment.name}: no step is left; `make promote` or `make abort`")

    def promote(self) -> None:
        """Make the canary's release the stable one, image and model, and end the canary."""
        release, before = self.deployment.current(), self.stable.current()
        print(f"{self.stable.name}: from {before} to {release}", flush=True)
        self.stable.run(release.on("stable"))
        settle(self.stable, contract_of(release, self._store), before)
        self._end()
        print(f"{self.stable.name}: {release} is promoted; it serves alone")

    def abort(self, reasons: Sequence[str] = ()) -> None:
        """End the canary; the stable release serves on. Raises NotFound where there is none."""
        release = self.deployment.current()
        self._end()
        why = f" because of {'; '.join(reasons)}" if reasons else ""
        print(f"{self.deployment.name}: {release} is aborted{why}", flush=True)
        print(f"{self.stable.name}: {self.stable.current()} serves alone")

    def _end(self) -> None:
        self.deployment.remove()
        self.stable.end_fresh()

    def _check(self, manifests: Manifests) -> None:
        """Refuse what is no canary of the stable release, before anything is changed."""
        stable = self.stable.current()
        if manifests.contract.name != stable.model_name:
            raise ClusterError(
                f"MODEL: expected a version of {stable.model}, got {manifests.model}"
            )
        if (manifests.source or "image") != stable.source:
            raise ClusterError(
                f"SOURCE: expected that of the stable release, {stable.source}, got "
                f"{manifests.source}. Change it with `make deploy`."
            )
        if (manifests.image_id, manifests.contract_sha256) == stable.parts:
            raise ClusterError(f"expected another release than the stable one, got it: {stable}")
        if self.deployment.exists():
            running = self.deployment.current()
            if (manifests.image_id, manifests.contract_sha256) != running.parts:
                raise ClusterError(
                    f"{self.deployment.name}: {running} is being tried. `make promote` or "
                    "`make abort` first."
                )
        if served := contract_of(stable, self._store):
            _check_formats(manifests.contract, served)

    def _replicas_for(self, weight: int) -> int:
        stable = self.stable.replicas()
        return max(1, round(stable * weight / (_WHOLE - weight)))

    def _say_share(self, weight: int) -> None:
        canary, stable = self.deployment.replicas(), self.stable.replicas()
        print(
            f"{self.deployment.name}: {canary} of {canary + stable} replicas, "
            f"{_WHOLE * canary / (canary + stable):.0f} % ({weight} % was asked for): "
            f"{self.deployment.current()}",
            flush=True,
        )

    def _scale(self, manifests: Manifests, replicas: int) -> None:
        """Have so many replicas of the canary, ready, their golden rows right; else abort."""
        if self.deployment.exists():
            self.deployment.scale(replicas)
        else:

            def start_with(manifest: dict[str, Any]) -> None:
                if manifest["kind"] == "HorizontalPodAutoscaler":
                    manifest["spec"]["minReplicas"] = replicas
                    most = max(replicas, manifest["spec"]["maxReplicas"])
                    manifest["spec"]["maxReplicas"] = most

            apply(manifests, "canary", start_with)
        try:
            self.deployment.wait(ROLLOUT_SECONDS)
            self.stable.wait(ROLLOUT_SECONDS)
            with PortForwards(self.deployment.namespace) as pods:
                self._ask_golden_rows(pods, manifests.contract)
        except (RolloutError, WrongAnswer) as error:
            print(self.deployment.report(), file=sys.stderr)
            self.abort([str(error)])
            raise ClusterError(f"{self.deployment.name}: aborted: {error}") from None

    def _ask_golden_rows(self, pods: PortForwards, contract: Contract, least: float = 0.0) -> None:
        """Check the golden rows of the canary on each of its pods.

        least: share of the stable release's golden rows on which each pod must agree. Raises
        WrongAnswer, and ClusterError if a pod cannot be reached, which says nothing about it.
        """
        served = contract_of(self.stable.current(), self._store) if least else None
        for name in self._pod_names():
            try:
                pods.ask(name, HTTP, partial(golden.check, contract=contract))
                if served:
                    pods.ask(name, HTTP, partial(_check_agreement, contract=served, least=least))
            except (WrongAnswer, ClusterError):
                # The autoscaler may have removed the pod meanwhile.
                if name in self._pod_names():
                    raise

    def _pod_names(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.deployment.pods()]

    def _bake(self, contract: Contract, trial: Trial) -> None:
        """Watch a step. Raises ClusterError when it was aborted, and InconclusiveError."""
        with PortForwards(self.deployment.namespace) as pods:
            canary = _Watched(pods, self.deployment.pods())
            stable = _Watched(pods, self.stable.fresh_pods())
            reasons = self._watch(pods, canary, contract, trial)
            counts = canary.counts(), stable.counts()
        print(f"  canary: {counts[0]}\n  stable: {counts[1]}", flush=True)
        reasons += worse(*counts, trial.min_requests)
        if reasons:
            self.abort(reasons)
            raise ClusterError(f"{self.deployment.name}: aborted: {'; '.join(reasons)}")
        if min(one.requests for one in counts) < trial.min_requests:
            raise InconclusiveError(
                f"{self.deployment.name}: inconclusive: canary and fresh stable replicas answered "
                f"{counts[0].requests} and {counts[1].requests} requests in "
                f"{trial.bake_seconds:g} s, {trial.min_requests} each are needed to judge. It "
                "stays at this share; the same command goes on, `make abort` ends it."
            )

    def _watch(
        self, pods: PortForwards, canary: "_Watched", contract: Contract, trial: Trial
    ) -> list[str]:
        """Return after the time of a step, or at once with what is wrong beyond doubt."""
        deadline = time.monotonic() + trial.bake_seconds
        while True:
            try:
                self._ask_golden_rows(pods, contract, trial.agreement)
            except WrongAnswer as wrong:
                return [str(wrong)]
            if lost := canary.lost(self.deployment.pods()):
                return lost
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            time.sleep(min(_LOOK_SECONDS, left))


class _Watched:
    """Pods and what they had counted when the watch began."""

    def __init__(self, connections: PortForwards, pods: list[dict[str, Any]]) -> None:
        self._connections = connections
        self._restarts = {pod["metadata"]["name"]: _restarts(pod) for pod in pods}
        self._before = {name: self._counts(name) for name in self._restarts}

    def counts(self) -> Counts:
        """Return what they have counted since; of those that are still there."""
        total = Counts()
        for name, before in self._before.items():
            try:
                total += self._counts(name) - before
            except (httpx.HTTPError, ClusterError):
                continue
        return total

    def _counts(self, name: str) -> Counts:
        return self._connections.ask(name, MANAGEMENT, Counts.at)

    def lost(self, pods: list[dict[str, Any]]) -> list[str]:
        """Return which pods have restarted, or are not ready any more."""
        there = {pod["metadata"]["name"]: pod for pod in pods}
        return [
            f"pod {name}: restarted or not ready"
            for name, restarts in self._restarts.items()
            if name in there and (_restarts(there[name]) > restarts or not is_ready(there[name]))
        ]


def _check_agreement(url: str, contract: Contract, least: float) -> None:
    """Raise WrongAnswer if a server agrees on a smaller share of a contract's golden rows."""
    share = golden.agreement(url, contract)
    if share < least:
        raise WrongAnswer(
            f"golden rows of {contract.name}/{contract.version}: it agrees on {share:.0%}, "
            f"expected {least:.0%}"
        )


def _restarts(pod: dict[str, Any]) -> int:
    return sum(one["restartCount"] for one in pod["status"].get("containerStatuses", []))


def _check_formats(canary: Contract, stable: Contract) -> None:
    """Refuse a canary that the stable release's clients could not ask."""
    for what, ours, theirs in (
        ("inputs", canary.inputs, stable.inputs),
        ("outputs", canary.outputs, stable.outputs),
    ):
        came, expected = (
            ", ".join(f"{one.name} {one.signature}" for one in some) for some in (ours, theirs)
        )
        if came != expected:
            raise ClusterError(
                f"{canary.name}/{canary.version}: {what} expected {expected} as in version "
                f"{stable.version}, got {came}. Clients of one cannot be sent to the other: "
                "release it under another name."
            )
