"""Find drift: replicas that differ from each other, from the store, or from supported software."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from operator import methodcaller
from typing import Any

from artifact.errors import StoreError
from artifact.reader import contract_in
from artifact.redact import redact
from release.audit import end_of_life, vulnerabilities
from release.audit.check import Pin
from release.images.docker import DockerError
from release.images.docker_images import local_images
from release.images.prune import newest
from release.inventory.replica import Replica
from release.kubernetes.kubectl import ClusterError, server_version

# The packages that compute a model's outputs.
_RUNTIME_PACKAGES = ("onnxruntime", "numpy")
_AUDIT_SECONDS = 30
# The facts that are equal in all replicas of one release.
_RELEASE_FACTS: dict[str, Callable[[Replica], object]] = {
    "model sha256": lambda replica: replica.inventory["model"]["sha256"],
    "contract sha256": lambda replica: replica.contract_sha256,
    "python": lambda replica: replica.inventory["python"],
    "os": lambda replica: replica.inventory["os"],
}


def find_drift(replicas: list[Replica], store: str) -> Iterator[str]:
    """Yield a line with address, expected value, and actual value for each difference."""
    yield from _differences_within_releases(replicas)
    yield from _differences_within_tracks(replicas)
    yield from _runtime_differences(replicas)
    for model, same_model in _group(replicas, lambda replica: replica.model).items():
        try:
            yield from _differences_from_store(model, same_model, store)
        except StoreError as error:
            yield f"{model}: {error}"
    for replica in replicas:
        prefix = f"{replica.url}: {replica.model}"
        if replica.inventory["degraded"]:
            yield f"{prefix}: degraded: {replica.inventory['degraded']}"
        if not replica.inventory["model"]["purpose"].strip():
            yield f"{prefix}: its contract's purpose is empty: set PURPOSE when you publish a model"


def _differences_within_releases(replicas: list[Replica]) -> Iterator[str]:
    """Yield the facts that differ between replicas of the same release."""
    for release, same_release in _group(replicas, lambda replica: replica.release).items():
        if release is None:
            continue
        for name, fact in _RELEASE_FACTS.items():
            yield from _differences(release, name, same_release, fact)
        packages = {name for replica in same_release for name in replica.inventory["packages"]}
        # _runtime_differences() reports the runtime packages, with their versions.
        if differing := [
            name
            for name in sorted(packages.difference(_RUNTIME_PACKAGES))
            if len(_group(same_release, methodcaller("package", name))) > 1
        ]:
            yield (
                f"{release}: packages differ: {', '.join(differing)}; FORMAT=json has the versions"
            )


def _differences_within_tracks(replicas: list[Replica]) -> Iterator[str]:
    """Yield tracks that run several releases, and pods whose contract differs from the template."""
    for track, same_track in _tracks(replicas).items():
        yield from _differences(track, "release", same_track, _release)
    for replica in replicas:
        expected = replica.address.contract_sha256
        if expected is not None and expected != replica.contract_sha256:
            yield (
                f"{replica.url}: expected contract {expected} from the pod's annotation, "
                f"serves {replica.contract_sha256}"
            )


def _tracks(replicas: list[Replica]) -> dict[str, list[Replica]]:
    """Return the replicas in a cluster by deployment and track."""
    in_cluster = [replica for replica in replicas if replica.address.track]
    return _group(
        in_cluster, lambda replica: f"{replica.address.deployment} {replica.address.track}"
    )


def _release(replica: Replica) -> str:
    return f"{replica.model} in {replica.inventory['image']}"


def _runtime_differences(replicas: list[Replica]) -> Iterator[str]:
    """Yield runtime packages that differ between replicas or from the versions of training."""
    for name in _RUNTIME_PACKAGES:
        yield from _differences("all replicas", name, replicas, methodcaller("package", name))
    by_server = _group(replicas, lambda replica: (replica.url, replica.model))
    for (url, model), workers in by_server.items():
        for name, versions in workers[0].inventory["model"]["other_versions"].items():
            if name in _RUNTIME_PACKAGES:
                yield (
                    f"{url}: {model}: {name} {versions['here']}, "
                    f"its training had {versions['trained']}"
                )


def _differences_from_store(model: str, replicas: list[Replica], store: str) -> Iterator[str]:
    """Yield replicas whose contract is missing from the store or differs from the store's."""
    contract = contract_in(store, *model.split("/"))
    sha256 = hashlib.sha256(contract).hexdigest() if contract is not None else None
    shown_store = redact(store)
    for replica in replicas:
        if sha256 is None:
            yield (
                f"{replica.url}: {model}: {shown_store} does not have it: it cannot be released "
                "again"
            )
        elif sha256 != replica.contract_sha256:
            yield (
                f"{replica.url}: {model}: {shown_store} has another contract of that version: "
                f"sha256 {sha256}, it serves {replica.contract_sha256}"
            )


def known_problems(replicas: list[Replica]) -> tuple[list[str], list[str]]:
    """Return vulnerabilities and end-of-life dates of the replicas' software, and notes.

    The checks are those of `make audit`. A service that does not answer is only a note, because
    the rest of the inventory needs no internet.
    """
    packages, platforms = _pins(replicas, _packages), _pins(replicas, _platform)
    unchecked = []
    if any(replica.address.track for replica in replicas):
        try:
            platforms["kubernetes", server_version()] = ["the cluster"]
        except ClusterError as error:
            unchecked.append(f"kubernetes: {error}")
    dates = end_of_life.check(platforms, packages)
    result = vulnerabilities.check(packages, _AUDIT_SECONDS) + dates
    problems = [
        f"{', '.join(finding.where)}: {finding.name} {finding.version}: {finding.problem}"
        for finding in result.findings
    ]
    unchecked += result.unchecked
    return problems, [*result.notes, *(f"not checked: {reason}" for reason in unchecked)]


def find_notes(replicas: list[Replica], keep: int = 3) -> Iterator[str]:
    """Yield running canaries, images that `make prune` would remove, and checks that did not run.

    keep: the number of newest images that `make prune` keeps for each mode and model.
    """
    for track, same_track in _tracks(replicas).items():
        if track.endswith(" canary"):
            yield f"{track}: {_release(same_track[0])} is running as a canary"
    if not any(replica.inventory["image"] for replica in replicas):
        return
    try:
        images = local_images("").images
    except DockerError as error:
        yield f"not checked: which images `make prune` would remove: {error}"
        return
    recent = newest(images, keep)
    old = {name for image in images if image.id not in recent for name in image.names}
    for replica in replicas:
        if (image_name := replica.inventory["image"]) in old:
            yield (
                f"{replica.url}: {image_name}: older than the newest {keep} images of this Docker: "
                "`make prune` removes it when no container uses it"
            )


def _pins(
    replicas: list[Replica], software: Callable[[Replica], dict[str, str]]
) -> dict[Pin, list[str]]:
    """Return the installed versions, each with the addresses of the replicas that run it."""
    addresses: dict[Pin, dict[str, None]] = {}
    for replica in replicas:
        for pin in software(replica).items():
            addresses.setdefault(pin, {})[replica.url] = None
    return {pin: list(urls) for pin, urls in addresses.items()}


def _packages(replica: Replica) -> dict[str, str]:
    packages: dict[str, str] = replica.inventory["packages"]
    return packages


def _platform(replica: Replica) -> dict[str, str]:
    """Return the versions of Python and, on Debian, of Debian."""
    debian = re.match(r"Debian GNU/Linux (\d+)", replica.inventory["os"])
    return {"python": replica.inventory["python"], **({"debian": debian[1]} if debian else {})}


def _differences(
    group: str, name: str, replicas: list[Replica], fact: Callable[[Replica], object]
) -> Iterator[str]:
    """Yield one line with all values of a fact and their addresses, if the values differ."""
    by_value = _group(replicas, fact)
    if len(by_value) > 1:
        values = "; ".join(
            f"{value or 'none'} at {_addresses(same_value)}"
            for value, same_value in by_value.items()
        )
        yield f"{group}: {name} differs: {values}"


def _addresses(replicas: Iterable[Replica]) -> str:
    return ", ".join(dict.fromkeys(replica.url for replica in replicas))


def _group(replicas: Iterable[Replica], key: Callable[[Replica], Any]) -> dict[Any, list[Replica]]:
    groups: dict[Any, list[Replica]] = {}
    for replica in replicas:
        groups.setdefault(key(replica), []).append(replica)
    return groups
