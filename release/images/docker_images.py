"""The names, layers and sizes of this project's images in Docker.

An image is this project's if it has the labels that the Dockerfiles give.
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

# What the Dockerfiles label their images with.
TITLES = ("model_in_image", "model_load", "model")
_MODEL = "model.name"

_NEVER = "1970-01-01T00:00:00Z"
# An image may go between being listed and being looked at.
_TRIES = 3
_DOCKER_HUB = re.compile(r"^((index\.)?docker\.io/)?(library/)?")
_WITHOUT_LAYER = re.compile(
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
    transfer_bytes: int | None  # what a registry sends, None if no registry has the image


@dataclass(frozen=True)
class Image:
    """An image with this project's labels.

    names: what has to be removed for it to be gone; none for one that was built over. digests: what
    it is called in registries and by its id. made: when it was built, or named here, whichever is
    later: a build from the cache bears the date of the first that was like it. layers: each with
    all below it, because that is what Docker shares.
    """

    id: str
    title: str
    model: str
    names: tuple[str, ...]
    digests: frozenset[str]
    made: datetime
    layers: tuple[str, ...]

    @property
    def label(self) -> str:
        """What a person calls it."""
        return "\n".join(self.names) or f"<none> {self.id.removeprefix('sha256:')[:12]}"

    def foreign_names(self, prefix: str) -> list[str]:
        """Return the names that `make build` would not have given it, with this before them."""
        return [
            name
            for name in self.names
            if not (name.startswith(prefix) and repository(name).split("/")[-1] == self.title)
        ]

    def is_called(self, reference: str) -> bool:
        """Say whether a cluster that has this reference may mean this image."""
        name, _, digest = reference.partition("@")
        if {name, digest} & self.digests:
            return True
        by_tag = not digest or repository(name) != name
        return by_tag and _with_tag(name) in map(_with_tag, self.names)


@dataclass(frozen=True)
class Found:
    """The images of this project, newest first, and the layers that all others have."""

    images: list[Image]
    others: set[str]

    def freed_by(self, removed: Iterable[Image]) -> set[str]:
        """Return the layers that no image has when these are removed."""
        gone = {image.id for image in removed}
        stay = {layer for image in self.images if image.id not in gone for layer in image.layers}
        went = {layer for image in self.images if image.id in gone for layer in image.layers}
        return went - stay - self.others


def find(prefix: str) -> Found:
    """Return the images of this project that have a name with that prefix. Raises DockerError.

    With the empty prefix also those without a name.
    """
    images, others = [], set[str]()
    records = _records()
    parents = {record.get("Parent") for record in records}
    for record in records:
        image = _image(record)
        if image and any(name.startswith(prefix) for name in image.names or [""]):
            # A step of the builder before BuildKit goes with the image that was made from it.
            if image.names or image.id not in parents:
                images.append(image)
        else:
            others.update(_layers(record))
    return Found(sorted(images, key=lambda image: image.made, reverse=True), others)


def layer_sizes(images: list[Image]) -> dict[str, int]:
    """Return the bytes of each layer's files. Raises DockerError.

    `docker system df -v` would give what each image has alone, rounded: not what several that go
    have together. `docker save` would give layers, but needs room for a copy on a full disk.
    """
    return {
        layer: size
        for image in images
        for layer, (_, size) in zip(
            image.layers, _history(image.id, len(image.layers)), strict=False
        )
    }


def layers(name: str) -> list[Layer]:
    """Return the layers of an image, the base's first. Raises DockerError."""
    (record,) = json.loads(docker("image", "inspect", name))
    digests = record["RootFS"]["Layers"]
    transfers = _transfer_bytes(record, len(digests))
    steps = _history(record["Id"], len(digests))
    return [
        Layer(digest, instruction, size, transfer)
        for digest, (instruction, size), transfer in zip(digests, steps, transfers, strict=True)
    ]


def _transfer_bytes(record: dict[str, Any], count: int) -> list[int | None]:
    """Return the compressed sizes of an image's layers, from the first registry that has it."""
    for name in record.get("RepoDigests") or []:
        # The image may be deleted there, or nobody is logged in.
        with contextlib.suppress(DockerError, LookupError):
            sizes = [layer["size"] for layer in _manifest(name)["layers"]]
            if len(sizes) == count:
                return sizes
    return [None] * count


def _manifest(name: str) -> dict[str, Any]:
    # As the engine does, allow HTTP on loopback.
    insecure = ["--insecure"] if name.startswith(("127.", "localhost:")) else []
    manifest: dict[str, Any] = json.loads(docker("manifest", "inspect", *insecure, name))
    for entry in manifest.get("manifests", ()):
        # The other entries of BuildKit's index are attestations, of no platform.
        if entry["platform"]["architecture"] != "unknown":
            return _manifest(f"{repository(name)}@{entry['digest']}")
    return manifest


def _history(image: str, count: int) -> list[tuple[str, int]]:
    """Return the instruction and the size of each of an image's layers, the base's first.

    Docker lists all instructions, not only those that made a layer. Instructions with a size made
    one, and of those without a size the likeliest did.
    """
    printed = docker("history", "--no-trunc", "--human=false", "--format={{json .}}", image)
    steps = [json.loads(line) for line in reversed(printed.splitlines())]
    history = [(step["CreatedBy"], int(step["Size"])) for step in steps]
    made = sorted(range(len(history)), key=lambda index: _unlikely(*history[index]))[:count]
    return [*(history[index] for index in sorted(made)), *[("", 0)] * (count - len(made))]


def _unlikely(instruction: str, size: int) -> int:
    """Return how little it is to be expected that an instruction made a layer."""
    if size:
        return 0
    if _WITHOUT_LAYER.match(instruction):
        return 3
    return 2 if _WORKDIR.match(instruction) else 1


def _records() -> list[dict[str, Any]]:
    """Return what Docker says about every image on this machine. Raises DockerError."""
    for _ in range(_TRIES - 1):
        with contextlib.suppress(DockerError):
            return _inspect()
    return _inspect()


def _inspect() -> list[dict[str, Any]]:
    ids = dict.fromkeys(docker("image", "ls", "--all", "--quiet", "--no-trunc").split())
    return list(json.loads(docker("image", "inspect", *ids))) if ids else []


def _image(record: dict[str, Any]) -> Image | None:
    """Return an image of this project; None for another's."""
    labels = (record.get("Config") or {}).get("Labels") or {}
    if labels.get(TITLE) not in TITLES or REVISION not in labels:
        return None
    tags, digests = record.get("RepoTags") or [], record.get("RepoDigests") or []
    tagged = {repository(tag) for tag in tags}
    times = [record.get("Created"), (record.get("Metadata") or {}).get("LastTagTime")]
    return Image(
        record["Id"],
        labels[TITLE],
        labels.get(_MODEL, ""),
        # With the last tag of a repository goes what it is called there by digest.
        (*tags, *(name for name in digests if repository(name) not in tagged)),
        frozenset([record["Id"], *(name.rpartition("@")[2] for name in digests)]),
        max(datetime.fromisoformat(time or _NEVER) for time in times),
        tuple(_layers(record)),
    )


def _layers(record: dict[str, Any]) -> Iterable[str]:
    return accumulate((record.get("RootFS") or {}).get("Layers") or [], "{} {}".format)


def _with_tag(name: str) -> str:
    """Return a name as it is always the same: without Docker Hub, and with a tag."""
    tagged = name if repository(name) != name else f"{name}:latest"
    return _DOCKER_HUB.sub("", tagged)
