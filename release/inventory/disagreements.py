"""What replicas do not agree on: with each other, with the store, with what is known."""

import datetime as dt
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from operator import methodcaller
from typing import Any

from release.audit.advisories import advisories, findings
from release.audit.end_of_life import dates, end_of_life
from release.docker import DockerError
from release.docker_images import find
from release.inventory.replica import Replica
from release.prune import newest
from release.store import StoreError, contract_in
from serving.errors import StartupError
from serving.redact import redact

# What a model's outputs depend on.
_RUNTIME = ("onnxruntime", "numpy")
_NO_PACKAGES = ("python", "debian")
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
        except (StartupError, StoreError) as error:
            yield f"{model}: {error}"
    yield from _known(replicas)
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


def _known(replicas: list[Replica]) -> Iterator[str]:
    """Yield what is known to be wrong with what runs: vulnerabilities and ends of life."""
    today = dt.datetime.now(dt.UTC).date()
    versions = {
        (name, version): [other for other in replicas if _software(other).get(name) == version]
        for one in replicas
        for name, version in _software(one).items()
    }
    for (name, version), having in versions.items():
        where = _where(having)
        support = end_of_life(name, version, today)
        if support.state == "ended":
            yield f"{where}: {name} {version} is {support}"
        for found in findings({name: version}) if name not in _NO_PACKAGES else ():
            if found.advisory is not None:
                fixed = ", ".join(found.fixed) or "no version"
                yield f"{where}: {name} {version}: {found.advisory}, fixed in {fixed}"


def notes(replicas: list[Replica], keep: int = 3) -> Iterator[str]:
    """Yield what is no disagreement but should be known, and what could not be asked.

    keep: of `make prune`: how many images of each mode and model stay that nothing runs.
    """
    today = dt.datetime.now(dt.UTC).date()
    extracts = (("vulnerabilities", advisories()), ("ends of life", dates()))
    for what, extract in extracts:
        if said := extract.warning(today):
            yield f"{what}: {said}"
    for track, some in _tracks(replicas).items():
        if track.endswith(" canary"):
            yield f"{track}: {_release(some[0])} is being tried"
    if not any(one.answer["image"] for one in replicas):
        return
    try:
        images = find("").images
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


def _software(one: Replica) -> dict[str, str]:
    """Return the packages of a replica, its Python, and its Debian if it is one."""
    debian = re.match(r"Debian GNU/Linux (\d+)", one.answer["os"])
    return {
        **one.answer["packages"],
        "python": one.answer["python"],
        **({"debian": debian[1]} if debian else {}),
    }


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
