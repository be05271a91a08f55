"""Remove images that no container, no cluster, and no rollback needs: `make prune`.

Invariants: in doubt an image is kept, no removal is forced, and only images with this project's
labels and names are removed.
"""

from collections import defaultdict

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from artifact.reader import versions_in
from artifact.redact import redact
from artifact.uri import is_bucket, local_path
from release.images.docker import DockerError, docker, registry_prefix
from release.images.docker_images import Image, layer_sizes, local_images
from release.kubernetes.images_in_use import images_in_use
from release.kubernetes.kubectl import ClusterError, current_context


class PruneError(Exception):
    """Nothing was removed; the message states the reason and what to do."""


def prune(store: str, keep: int, *, yes: bool, registry: str | None = None) -> int:
    """Print which images are not needed and the space that they use; with yes, remove them.

    store: the model store whose artifacts are counted.
    keep: the number of newest images to keep for each mode and model, at least 1. Docker has no
    rollout history as Kubernetes has, and the newest image may not be deployed yet.
    registry: consider only images below this registry.

    Returns the exit status: 1 if an image could not be removed. Raises DockerError, PruneError.
    """
    if keep < 1:
        raise PruneError(f"KEEP: expected 1 or more, got {keep}. The newest image is always kept.")
    needed = _images_images_in_use()
    prefix = registry_prefix(registry)
    local = local_images(prefix)
    reasons = why_kept(local.images, keep, needed, prefix)
    sizes = layer_sizes(local.images)
    unneeded = [image for image in local.images if image.id not in reasons]
    failures = _remove(unneeded) if yes else {}
    _print_images(local.images, sizes, reasons | _outcomes(unneeded, failures, yes=yes))
    freed = local.layers_freed_by(image for image in unneeded if image.id not in failures)
    print(_summary(sum(sizes[layer] for layer in freed), sizes, local.images, yes=yes))
    print(_artifacts_summary(store))
    return 1 if failures else 0


def _images_images_in_use() -> set[str]:
    """Return the images that the cluster needs, and print which cluster. Raises PruneError."""
    try:
        needed, context = images_in_use(), current_context()
    except ClusterError as error:
        raise PruneError(
            f"{error}\nNothing was removed, because the configured cluster may need any image. "
            "Start the cluster, or choose another with `kubectl config use-context`, or set "
            "KUBECONFIG=/dev/null if no cluster uses the images of this Docker."
        ) from None
    if needed is None:
        print("No cluster is configured: only images that Docker's containers use are needed.")
        return set()
    print(f"Images are needed by the cluster of the context {context} and by Docker's containers.")
    return needed


def why_kept(images: list[Image], keep: int, needed: set[str], prefix: str = "") -> dict[str, str]:
    """Return by id the reason to keep an image. images: newest first. Raises DockerError."""
    recent = newest(images, keep, prefix)
    reasons = {}
    for image in images:
        foreign = image.foreign_names(prefix)
        if containers := _containers(image):
            reasons[image.id] = f"kept: used by container {', '.join(containers)}"
        elif any(map(image.matches, needed)):
            reasons[image.id] = "kept: the cluster needs it"
        elif foreign:
            reasons[image.id] = f"kept: {foreign[0]} is not a name of this project"
        elif image.id in recent:
            reasons[image.id] = f"kept: among the newest {keep}"
    return reasons


def newest(images: list[Image], keep: int, prefix: str = "") -> set[str]:
    """Return the ids of the newest images of each mode and model. images: newest first.

    Images without a name do not count: a rollback cannot name them, and each build that takes
    over a tag would push a named image out of the newest.
    """
    ids = defaultdict[tuple[str, str], list[str]](list)
    for image in images:
        if image.names and not image.foreign_names(prefix):
            ids[image.title, image.model].append(image.id)
    return {image_id for newest_first in ids.values() for image_id in newest_first[:keep]}


def _containers(image: Image) -> list[str]:
    """Return the containers of an image, including stopped ones, which can be started again."""
    by_image = f"--filter=ancestor={image.id}"
    return docker("ps", "--all", "--no-trunc", by_image, "--format={{.Names}}").split()


def _remove(images: list[Image]) -> dict[str, str]:
    """Remove images; return by id the reason for each that still exists."""
    failures = {}
    for image in images:
        try:
            output = docker("rmi", *(image.names or [image.id]))
            # `docker rmi` succeeds even if it removed only the names, because another image needs
            # this one.
            if f"Deleted: {image.id}" not in output:
                failures[image.id] = "Docker removed its names only"
        except DockerError as error:
            failures[image.id] = str(error)
    return failures


def _outcomes(unneeded: list[Image], failures: dict[str, str], *, yes: bool) -> dict[str, str]:
    """Return by id the text for each image that nothing needs."""
    outcome = "removed" if yes else "would remove"
    failed = {image_id: f"NOT removed: {reason}" for image_id, reason in failures.items()}
    return {image.id: outcome for image in unneeded} | failed


def _print_images(images: list[Image], sizes: dict[str, int], outcomes: dict[str, str]) -> None:
    table = Table("image", "built or tagged", "size", "")
    table.columns[0].overflow = table.columns[3].overflow = "fold"
    table.columns[2].justify = "right"
    for image in images:
        size = decimal(sum(sizes[layer] for layer in image.layers))
        built_at = f"{image.built_at.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(image.label, built_at, size, outcomes[image.id])
    Console(highlight=False, markup=False).print(table)


def _summary(freed_bytes: int, sizes: dict[str, int], images: list[Image], *, yes: bool) -> str:
    verb = "Freed" if yes else "Would free"
    hint = "" if yes else " Remove them with YES=1."
    return (
        f"{verb} {decimal(freed_bytes)} of {decimal(sum(sizes.values()))}, the size of all "
        f"{len(images)} images. Shared layers count once and are freed with their last image."
        f"{hint}\nDocker's build cache may keep some of these layers: `docker builder prune` "
        "removes them."
    )


def _artifacts_summary(store: str) -> str:
    """Return the number and size of the artifacts in the store; prune never removes artifacts."""
    if is_bucket(store):
        return f"Artifacts: not counted, because STORE={redact(store)} is not a local directory."
    versions = versions_in(local_path(store, "STORE"))
    files = [file for version in versions for file in version.rglob("*") if file.is_file()]
    size = decimal(sum(file.stat().st_size for file in files))
    return f"Artifacts: {len(versions)} in {store}, {size}; `make prune` never removes artifacts."
