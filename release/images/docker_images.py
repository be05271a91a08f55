"""List this project's images in Docker, with their names, layers, and sizes.

An image belongs to this project if it has the labels that the Dockerfiles set.
"""

import contextlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import Any

from release.images.docker import REVISION, TITLE, DockerError, docker, repository

# The values of the label TITLE in the Dockerfiles.
TITLES = ("model_in_image", "model_load", "model")
_MODEL_LABEL = "model.name"

# Docker's value of a date that is not set.
_NO_DATE = "1970-01-01T00:00:00Z"
# Another process may delete an image between `docker image ls` and `docker image inspect`.
_INSPECT_ATTEMPTS = 3
_DOCKER_HUB = re.compile(r"^((index\.)?docker\.io/)?(library/)?")
_INSTRUCTION_WITHOUT_LAYER = re.compile(
    r"(/bin/sh -c #\(nop\) +)?"
    r"(ARG|CMD|ENTRYPOINT|ENV|EXPOSE|HEALTHCHECK|LABEL|MAINTAINER|ONBUILD|SHELL|STOPSIGNAL|USER|VOLUME)\b"
)
_WORKDIR = re.compile(r"(/bin/sh -c #\(nop\) +)?WORKDIR\b")


@dataclass(frozen=True)
class Layer:
    """One layer of an image."""

    digest: str  # of its content; equal layers are stored and transferred once
    created_by: str  # the instruction
    size_bytes: int  # of its files
    transfer_bytes: int | None  # compressed, as the registry sends it; None: in no registry


@dataclass(frozen=True)
class Image:
    """An image with this project's labels."""

    id: str
    title: str  # one of TITLES
    model: str  # the model's name; "" for model_load
    # Removing all these names deletes the image. Empty if a newer build took over its tag.
    names: tuple[str, ...]
    digests: frozenset[str]  # the image's id and its digests in registries
    # The time of the build or of the last tag, whichever is later: Docker gives a build from the
    # cache the date of the first build with the same content.
    built_at: datetime
    layers: tuple[str, ...]  # each with all layers below it, as Docker shares layers

    @property
    def label(self) -> str:
        """The names for people; without a name the start of the id, as Docker shows it."""
        return "\n".join(self.names) or f"<none> {self.id.removeprefix('sha256:')[:12]}"

    def foreign_names(self, prefix: str) -> list[str]:
        """Return the names that `make build` does not give to an image below this registry."""
        return [
            name
            for name in self.names
            if not (name.startswith(prefix) and repository(name).split("/")[-1] == self.title)
        ]

    def matches(self, reference: str) -> bool:
        """Return whether a reference in a cluster may mean this image."""
        name, _, digest = reference.partition("@")
        if {name, digest} & self.digests:
            return True
        by_tag = not digest or repository(name) != name
        return by_tag and _full_name(name) in map(_full_name, self.names)


@dataclass(frozen=True)
class LocalImages:
    """The images in Docker: this project's, newest first, and the layers of all others."""

    images: list[Image]
    other_layers: set[str]

    def layers_freed_by(self, removed: Iterable[Image]) -> set[str]:
        """Return the layers that no image uses after these images are removed."""
        removed_ids = {image.id for image in removed}
        kept_layers, removed_layers = set[str](), set[str]()
        for image in self.images:
            (removed_layers if image.id in removed_ids else kept_layers).update(image.layers)
        return removed_layers - kept_layers - self.other_layers


def local_images(prefix: str) -> LocalImages:
    """Return this project's images with a name that has this prefix. Raises DockerError.

    With an empty prefix, images without a name are included.
    """
    images, other_layers = [], set[str]()
    records = _inspect_all()
    parents = {record.get("Parent") for record in records}
    for record in records:
        image = _image(record)
        if image and any(name.startswith(prefix) for name in image.names or [""]):
            # Docker's classic builder (before BuildKit) keeps an image of each step. Such an image
            # has no name and is the parent of another; Docker deletes it together with its child.
            if image.names or image.id not in parents:
                images.append(image)
        else:
            other_layers.update(_layer_chain(record))
    newest_first = sorted(images, key=lambda image: image.built_at, reverse=True)
    return LocalImages(newest_first, other_layers)


def layer_sizes(images: list[Image]) -> dict[str, int]:
    """Return the size in bytes of each layer. Raises DockerError.

    `docker system df -v` prints only rounded sizes for each image, so the size that several
    images free together is unknown. `docker save` has all layers, but needs free disk space.
    """
    return {
        layer: size
        for image in images
        for layer, (_, size) in zip(
            image.layers, _layer_history(image.id, len(image.layers)), strict=False
        )
    }


def image_layers(name: str) -> list[Layer]:
    """Return the layers of an image, the base's first. Raises DockerError."""
    (record,) = json.loads(docker("image", "inspect", name))
    digests = record["RootFS"]["Layers"]
    transfers = _transfer_bytes(record, len(digests))
    history = _layer_history(record["Id"], len(digests))
    return [
        Layer(digest, instruction, size, transfer)
        for digest, (instruction, size), transfer in zip(digests, history, transfers, strict=True)
    ]


def _transfer_bytes(record: dict[str, Any], count: int) -> list[int | None]:
    """Return the compressed sizes of the layers, from the first registry that has the image."""
    for name in record.get("RepoDigests") or []:
        # A registry may have deleted the image, or require a login.
        with contextlib.suppress(DockerError, LookupError):
            sizes = [layer["size"] for layer in _manifest(name)["layers"]]
            if len(sizes) == count:
                return sizes
    return [None] * count


def _manifest(name: str) -> dict[str, Any]:
    # Docker's engine allows HTTP registries on loopback; `docker manifest` needs the option.
    insecure = ["--insecure"] if name.startswith(("127.", "localhost:")) else []
    manifest: dict[str, Any] = json.loads(docker("manifest", "inspect", *insecure, name))
    for entry in manifest.get("manifests", ()):
        # BuildKit's index also lists attestations, with the platform "unknown".
        if entry["platform"]["architecture"] != "unknown":
            return _manifest(f"{repository(name)}@{entry['digest']}")
    return manifest


def _layer_history(image: str, layer_count: int) -> list[tuple[str, int]]:
    """Return the instruction and the size of each layer, the base's first.

    `docker history` lists all instructions and does not say which of them made a layer. An
    instruction with a size did; of those without a size, take the likeliest.
    """
    output = docker("history", "--no-trunc", "--human=false", "--format={{json .}}", image)
    steps = [json.loads(line) for line in reversed(output.splitlines())]
    history = [(step["CreatedBy"], int(step["Size"])) for step in steps]
    likeliest = sorted(range(len(history)), key=lambda index: _unlikeliness(*history[index]))
    with_layer = [history[index] for index in sorted(likeliest[:layer_count])]
    return [*with_layer, *[("", 0)] * (layer_count - len(with_layer))]


def _unlikeliness(instruction: str, size: int) -> int:
    """Return a rank that is 0 if the instruction surely made a layer, and higher if not."""
    if size:
        return 0
    if _INSTRUCTION_WITHOUT_LAYER.match(instruction):
        return 3
    # WORKDIR makes a layer only if the directory does not exist yet.
    return 2 if _WORKDIR.match(instruction) else 1


def _inspect_all() -> list[dict[str, Any]]:
    """Return Docker's record of every image on this machine. Raises DockerError."""
    for _ in range(_INSPECT_ATTEMPTS - 1):
        with contextlib.suppress(DockerError):
            return _inspect_once()
    return _inspect_once()


def _inspect_once() -> list[dict[str, Any]]:
    ids = dict.fromkeys(docker("image", "ls", "--all", "--quiet", "--no-trunc").split())
    return list(json.loads(docker("image", "inspect", *ids))) if ids else []


def _image(record: dict[str, Any]) -> Image | None:
    """Return the image of a record of `docker image inspect`; None if it is not this project's."""
    labels = (record.get("Config") or {}).get("Labels") or {}
    if labels.get(TITLE) not in TITLES or REVISION not in labels:
        return None
    tags, digests = record.get("RepoTags") or [], record.get("RepoDigests") or []
    tagged = {repository(tag) for tag in tags}
    times = [record.get("Created"), (record.get("Metadata") or {}).get("LastTagTime")]
    return Image(
        record["Id"],
        labels[TITLE],
        labels.get(_MODEL_LABEL, ""),
        # When Docker removes the last tag of a repository, it also removes the digest names there.
        (*tags, *(name for name in digests if repository(name) not in tagged)),
        frozenset([record["Id"], *(name.rpartition("@")[2] for name in digests)]),
        max(datetime.fromisoformat(time or _NO_DATE) for time in times),
        tuple(_layer_chain(record)),
    )


def _layer_chain(record: dict[str, Any]) -> Iterable[str]:
    """Return each layer with the digests of all layers below it."""
    return accumulate((record.get("RootFS") or {}).get("Layers") or [], "{} {}".format)


def _full_name(name: str) -> str:
    """Return the name without Docker Hub's host and always with a tag, for comparison."""
    tagged = name if repository(name) != name else f"{name}:latest"
    return _DOCKER_HUB.sub("", tagged)
