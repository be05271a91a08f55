"""Docker, through its own command line: what of it the tools need.

DOCKER in the environment names another program than `docker`.
"""

import json
import os
import re
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# The labels by which this project's Dockerfiles say what an image is.
TITLE = "org.opencontainers.image.title"
REVISION = "org.opencontainers.image.revision"
# What Docker and registries compress layers with.
_GZIP_LEVEL = 6
_GZIP_WINDOW = 31


class DockerError(Exception):
    """What Docker said when it did not do what it was asked."""


@dataclass(frozen=True)
class Layer:
    """One layer of an image.

    digest: of its content; equal layers are stored and transferred once. created_by: the
    instruction. size_bytes: of its files. transfer_bytes: what a registry sends of it, gzip.
    """

    digest: str
    created_by: str
    size_bytes: int
    transfer_bytes: int


def program() -> str:
    """Return the name of the command: DOCKER's, or `docker`."""
    return os.environ.get("DOCKER") or "docker"


def prefix_of(registry: str | None) -> str:
    """Return what comes before the names of images in a registry; "" where none is named."""
    return f"{registry.rstrip('/')}/" if registry else ""


def repository(name: str) -> str:
    """Return an image's name without tag and digest: a colon before a slash is a port's."""
    return re.sub(r":[^/]*$", "", name.partition("@")[0])


def docker(*arguments: str, show: bool = False) -> str:
    """Run a command and return what it printed; with show, its progress is for the user to see.

    Raises DockerError with its last words.
    """
    try:
        done = subprocess.run(  # noqa: S603 - the user's own docker
            [program(), *arguments],
            env={**os.environ, "DOCKER_BUILDKIT": "1"},
            stdout=subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            text=True,
            check=True,
        )
    except OSError as error:
        raise DockerError(f"DOCKER: cannot run {program()}: {error.strerror}") from None
    except subprocess.CalledProcessError as failed:
        said = (failed.stderr or "").strip() or "see above"
        raise DockerError(f"{program()} {arguments[0]}: {said}") from None
    return done.stdout


def layers(images: Sequence[str]) -> dict[str, list[Layer]]:
    """Return the layers of images, the base's first, by image. Raises DockerError."""
    with tempfile.TemporaryDirectory() as directory:
        saved = Path(directory) / "images.tar"
        docker("save", "-o", str(saved), *images)
        with tarfile.open(saved) as tar:
            manifest = _json(tar, "manifest.json")
            configs = {image["Config"]: _json(tar, image["Config"]) for image in manifest}
        paths = sorted({path for image in manifest for path in image["Layers"]})
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            counted = threads.map(lambda path: _sizes(saved, path), paths)
            sizes = dict(zip(paths, counted, strict=True))
    return {
        tag: _layers(configs[image["Config"]], [sizes[path] for path in image["Layers"]])
        for image in manifest
        for tag in image["RepoTags"]
    }


def _layers(config: dict[str, Any], sizes: list[tuple[int, int]]) -> list[Layer]:
    made = [step for step in config["history"] if not step.get("empty_layer")]
    return [
        Layer(digest, step.get("created_by", ""), *both)
        for digest, step, both in zip(config["rootfs"]["diff_ids"], made, sizes, strict=True)
    ]


def _json(tar: tarfile.TarFile, name: str) -> Any:
    file = tar.extractfile(name)
    assert file is not None  # noqa: S101 - Docker's format has it
    return json.load(file)


class _Compressing:
    """A file that counts what it would be compressed to while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._compressor = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_WINDOW)
        self.size_bytes = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.size_bytes += len(self._compressor.compress(data))
        return data

    def end(self) -> None:
        while self.read(1 << 20):
            pass
        self.size_bytes += len(self._compressor.flush())


def _sizes(saved: Path, path: str) -> tuple[int, int]:
    """Return the size of a layer's files, and of the layer as it is transferred."""
    with tarfile.open(saved) as tar:
        file = tar.extractfile(path)
        assert file is not None  # noqa: S101 - Docker's format has it
        compressing = _Compressing(file)
        with tarfile.open(fileobj=compressing, mode="r|") as layer:  # type: ignore[call-overload]
            files = sum(member.size for member in layer)
        compressing.end()
    return files, compressing.size_bytes
