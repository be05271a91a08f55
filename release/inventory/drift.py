"""What replicas do not agree on: with each other, with the store, with what is known."""

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

# What a model's outputs depend on.
_RUNTIME = ("onnxruntime", "numpy")
_AUDIT_SECONDS = 30
_OF_A_RELEASE: dict[str, Callable[[Replica], object]] = {
    "model sha256": lambda one: one.answer["model"]["sha256"],
    "contract sha256": lambda one: one.answer["model"]["contract_sha256"],
    "python": lambda one: one.answer["python"],
    "os": lambda one: one.answer["os"],
}


def disagreements(replicas: list[Replica], store: str) -> Iterator[str]:
    """Yield everything that does not agree, one line each, with where and what."""
    yield from _replicas_that_differ(replicas)
    yield from _tracks_that_differ(replicas)
    yield from _runtimes_that_differ(replicas)
    for model, some in _by(replicas, lambda one: one.model).items():
        try:
            yield from _not_as_published(model, some, store)
        except StoreError as error:
            yield f"{model}: {error}"
    for one in replicas:
        where = f"{one.url}: {one.model}"
        if one.answer["degraded"]:
            yield f"{where}: degraded: {one.answer['degraded']}"
        if not one.answer["model"]["purpose"].strip():
            yield f"{where}: its contract's purpose is empty: nobody knows what it is for"


def _replicas_that_differ(replicas: list[Replica]) -> Iterator[str]:
    for release, some in _by(replicas, lambda one: one.release).items():
        if release is None:
            continue
        for name, fact in _OF_A_RELEASE.items():
            yield from _differ(release, name, some, fact)
        packages = sorted({name for one in some for name in one.answer["packages"]})
        differing = [name for name in packages if len(_by(some, methodcaller("package", name))) > 1]
        if others := [name for name in differing if name not in _RUNTIME]:
            yield f"{release}: packages differ: {', '.join(others)}; FORMAT=json has all versions"


def _tracks_that_differ(replicas: list[Replica]) -> Iterator[str]:
    """Yield where one track runs several releases, or a pod not what its template says."""
    for track, some in _tracks(replicas).items():
        yield from _differ(track, "release", some, _release)
    for one in replicas:
        served = one.answer["model"]["contract_sha256"]
        wanted = one.address.contract_sha256
        if wanted is not None and wanted != served:
            yield f"{one.url}: its pod says contract {wanted}, it serves {served}"


def _tracks(replicas: list[Replica]) -> dict[str, list[Replica]]:
    """Return the replicas in a cluster by instance and track."""
    in_cluster = [one for one in replicas if one.address.track]
    return _by(in_cluster, lambda one: f"{one.address.instance} {one.address.track}")


def _release(one: Replica) -> str:
    return f"{one.model} in {one.answer['image']}"


def _runtimes_that_differ(replicas: list[Replica]) -> Iterator[str]:
    """Yield what models run on, where that is not the same everywhere, or not training's."""
    for name in _RUNTIME:
        yield from _differ("all that runs", name, replicas, methodcaller("package", name))
    for (url, model), some in _by(replicas, lambda one: (one.url, one.model)).items():
        for name, versions in some[0].answer["model"]["other_versions"].items():
            if name in _RUNTIME:
                yield (
                    f"{url}: {model}: {name} {versions['here']}, "
                    f"its training had {versions['trained']}"
                )


def _not_as_published(model: str, some: list[Replica], store: str) -> Iterator[str]:
    """Yield where a model runs that the store no longer has, or has otherwise."""
    held = contract_in(store, *model.split("/"))
    sha256 = hashlib.sha256(held).hexdigest() if held is not None else None
    shown = redact(store)
    for one in some:
        if sha256 is None:
            yield f"{one.url}: {model}: {shown} does not have it: it cannot be released again"
        elif sha256 != one.answer["model"]["contract_sha256"]:
            yield (
                f"{one.url}: {model}: {shown} has another contract of that version: "
                f"sha256 {sha256}, it serves {one.answer['model']['contract_sha256']}"
            )


def known_problems(replicas: list[Replica]) -> tuple[list[str], list[str]]:
    """Return the vulnerabilities and ends of life of the software of replicas, and notes.

    The checks are those of `make audit`. A service that fails is a note: the rest of the
    inventory needs no internet.
    """
    packages, platforms, unchecked = _pins(replicas, _packages), _pins(replicas, _platform), []
    if any(replica.address.track for replica in replicas):
        try:
            platforms["kubernetes", server_version()] = ["the cluster"]
        except ClusterError as error:
            unchecked.append(f"kubernetes: {error}")
    dates = end_of_life.check(platforms, packages)
    result = vulnerabilities.check(packages, _AUDIT_SECONDS) + dates
    findings = [
        f"{', '.join(found.where)}: {found.name} {found.version}: {found.problem}"
        for found in result.findings
    ]
    unchecked += result.unchecked
    return findings, [*result.notes, *(f"not checked: {reason}" for reason in unchecked)]


def notes(replicas: list[Replica], keep: int = 3) -> Iterator[str]:
    """Yield what is no disagreement but should be known, and what could not be asked.

    keep: of `make prune`: how many images of each mode and model stay that nothing runs.
    """
    for track, some in _tracks(replicas).items():
        if track.endswith(" canary"):
            yield f"{track}: {_release(some[0])} is being tried"
    if not any(one.answer["image"] for one in replicas):
        return
    try:
        images = local_images("").images
    except DockerError as error:
        yield f"which images `make prune` would remove was not asked: {error}"
        return
    recent = newest(images, keep)
    old = {name for image in images if image.id not in recent for name in image.names}
    for one in replicas:
        if one.answer["image"] in old:
            yield (
                f"{one.url}: {one.answer['image']}: older than the newest {keep} of this Docker: "
                "once its container is gone, `make prune` removes it"
            )


def _pins(
    replicas: list[Replica], software: Callable[[Replica], dict[str, str]]
) -> dict[Pin, list[str]]:
    """Return the versions that replicas run, each with the addresses of these replicas."""
    pins: dict[Pin, dict[str, None]] = {}
    for replica in replicas:
        for pin in software(replica).items():
            pins.setdefault(pin, {})[replica.url] = None
    return {pin: list(urls) for pin, urls in pins.items()}


def _packages(replica: Replica) -> dict[str, str]:
    packages: dict[str, str] = replica.answer["packages"]
    return packages


def _platform(replica: Replica) -> dict[str, str]:
    """Return the Python of a replica, and its Debian if it runs on Debian."""
    debian = re.match(r"Debian GNU/Linux (\d+)", replica.answer["os"])
    return {"python": replica.answer["python"], **({"debian": debian[1]} if debian else {})}


def _differ(
    among: str, name: str, some: list[Replica], fact: Callable[[Replica], object]
) -> Iterator[str]:
    """Yield one line when a fact is not the same for all, with who has which."""
    by_fact = _by(some, fact)
    if len(by_fact) > 1:
        listed = "; ".join(
            f"{value or 'none'} at {_where(having)}" for value, having in by_fact.items()
        )
        yield f"{among}: {name} differs: {listed}"


def _where(some: Iterable[Replica]) -> str:
    return ", ".join(dict.fromkeys(one.url for one in some))


def _by(some: Iterable[Replica], key: Callable[[Replica], Any]) -> dict[Any, list[Replica]]:
    grouped: dict[Any, list[Replica]] = {}
    for one in some:
        grouped.setdefault(key(one), []).append(one)
    return grouped
