"""Remove the images of this project that nothing runs and no rollback needs: `make prune`.

Docker says what there is and what its containers use, kubernetes/ what Kubernetes needs. Every
doubt keeps an image: nothing is forced, and nothing is removed that has not this project's
labels and names.
"""

from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from artifact.reader import versions_in
from artifact.redact import redact
from release.images.docker import DockerError, docker, prefix_of
from release.images.docker_images import Image, find, layer_sizes
from release.kubernetes.images_in_use import needed_by_cluster
from release.kubernetes.kubectl import ClusterError, current_context


class PruneError(Exception):
    """Why nothing was removed, for the person who asked for it."""


def prune(store: str, keep: int, *, yes: bool, registry: str | None = None) -> int:
    """Show which images go, what that frees and what all cost; with yes, remove them.

    store: model store whose artifacts are counted. keep: how many of the newest images of each mode
    and model stay though nothing runs them: the history of what runs in Docker alone, which has
    no ReplicaSets. At least 1, because what was built last may not be deployed yet. registry: look
    only at images below it. Returns the exit status: 1 when an image could not be removed.
    Raises DockerError and PruneError.
    """
    if keep < 1:
        raise PruneError(f"KEEP: expected 1 or more, got {keep}. The newest image always stays.")
    needed = _ask_cluster()
    prefix = prefix_of(registry)
    found = find(prefix)
    reasons = why_kept(found.images, keep, needed, prefix)
    sizes = layer_sizes(found.images)
    going = [image for image in found.images if image.id not in reasons]
    failures = _remove(going) if yes else {}
    _show_images(found.images, sizes, reasons | _outcomes(going, failures, yes=yes))
    freed = found.freed_by(image for image in going if image.id not in failures)
    print(_sum_up(sum(sizes[layer] for layer in freed), sizes, found.images, yes=yes))
    print(_artifacts(store))
    return 1 if failures else 0


def _ask_cluster() -> set[str]:
    """Return what the cluster needs, and say which was asked. Raises PruneError."""
    try:
        needed, context = needed_by_cluster(), current_context()
    except ClusterError as error:
        raise PruneError(
            f"{error}\nNothing was removed: what a configured cluster needs must be known. "
            "Start it, or choose another with `kubectl config use-context`, or set "
            "KUBECONFIG=/dev/null if no cluster uses the images of this Docker."
        ) from None
    if needed is None:
        print("No cluster is configured: only Docker was asked.")
        return set()
    print(f"The cluster of the context {context} and Docker were asked.")
    return needed


def why_kept(images: list[Image], keep: int, needed: set[str], prefix: str = "") -> dict[str, str]:
    """Return the reasons for images to stay, by id. images: newest first. Raises DockerError."""
    recent = newest(images, keep, prefix)
    reasons = {}
    for image in images:
        foreign = image.foreign_names(prefix)
        if containers := _containers(image):
            reasons[image.id] = f"kept: used by container {', '.join(containers)}"
        elif any(map(image.is_called, needed)):
            reasons[image.id] = "kept: the cluster needs it"
        elif foreign:
            reasons[image.id] = f"kept: {foreign[0]} is no name of this project"
        elif image.id in recent:
            reasons[image.id] = f"kept: among the newest {keep}"
    return reasons


def newest(images: list[Image], keep: int, prefix: str = "") -> set[str]:
    """Return the ids of the newest images of each mode and model. images: newest first.

    Those without a name do not count: a rollback could not name them, and every build that
    takes over a tag would push out a release.
    """
    same = defaultdict[tuple[str, str], list[str]](list)
    for image in images:
        if image.names and not image.foreign_names(prefix):
            same[image.title, image.model].append(image.id)
    return {id_ for ids in same.values() for id_ in ids[:keep]}


def _containers(image: Image) -> list[str]:
    """Return the containers of an image; one that has ended can be started again."""
    of_it = f"--filter=ancestor={image.id}"
    return docker("ps", "--all", "--no-trunc", of_it, "--format={{.Names}}").split()


def _remove(images: list[Image]) -> dict[str, str]:
    """Remove images, and return why not by the id of each that is still there."""
    failures = {}
    for image in images:
        try:
            said = docker("rmi", *(image.names or [image.id]))
            # Docker is content with having removed the name of what another image needs.
            if f"Deleted: {image.id}" not in said:
                failures[image.id] = "Docker removed its names only"
        except DockerError as error:
            failures[image.id] = str(error)
    return failures


def _outcomes(going: list[Image], failures: dict[str, str], *, yes: bool) -> dict[str, str]:
    """Return what became of the images that nothing needs, by id."""
    done = "removed" if yes else "would remove"
    failed = {id_: f"NOT removed: {why}" for id_, why in failures.items()}
    return {image.id: done for image in going} | failed


def _show_images(images: list[Image], sizes: dict[str, int], outcomes: dict[str, str]) -> None:
    table = Table("image", "built or named", "size", "")
    table.columns[0].overflow = table.columns[3].overflow = "fold"
    table.columns[2].justify = "right"
    for image in images:
        size = decimal(sum(sizes[layer] for layer in image.layers))
        made = f"{image.made.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(image.label, made, size, outcomes[image.id])
    Console(highlight=False, markup=False).print(table)


def _sum_up(freed_bytes: int, sizes: dict[str, int], images: list[Image], *, yes: bool) -> str:
    done = "Freed" if yes else "Would free"
    hint = "" if yes else " YES=1 removes them."
    return (
        f"{done} {decimal(freed_bytes)} of {decimal(sum(sizes.values()))}, the bytes of all "
        f"{len(images)} images: only layers that no image has any more, shared ones once.{hint}\n"
        "What Docker's build cache has of them stays on the disk until `docker builder prune`."
    )


def _artifacts(store: str) -> str:
    """Say what a model store holds; nothing in it is ever removed."""
    if "://" in store:
        return f"Artifacts: not counted, because STORE={redact(store)} is no local directory."
    versions = versions_in(Path(store))
    files = [file for version in versions for file in version.rglob("*") if file.is_file()]
    size = decimal(sum(file.stat().st_size for file in files))
    return f"Artifacts: {len(versions)} in {store}, {size}; none is removed."
