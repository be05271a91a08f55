"""Build the images of one model version and print the size of each layer: `make build`.

Invariant: an image is built only from an artifact that the model store holds byte for byte.
Images get deleted; the store keeps the original.
"""

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from artifact.contract import CONTRACT_FILE, MODEL_FILE, Contract
from artifact.reader import contract_in
from artifact.redact import redact
from artifact.verify import verify_files
from release.images.docker import docker, registry_prefix, repository
from release.images.docker_images import Layer, image_layers
from release.names import with_hash

# The Dockerfiles copy each layer from a folder below /layers that has the name of the layer, so
# the instruction of a layer tells which part of the image it is.
_LAYER_INSTRUCTION = "COPY /layers/"
# The only folder for artifacts that .dockerignore lets into the build context.
_ARTIFACTS_FOLDER = "models"
# The limit of the OCI distribution specification.
_MAX_TAG_LENGTH = 128


class BuildError(Exception):
    """The images cannot be built; the message names the variable of make to change."""


@dataclass(frozen=True)
class ReleaseImages:
    """The names of the images of one model version, and how to build them."""

    artifact: Path  # a directory below models/ in the working directory
    contract: Contract
    server_tag: str | None  # None: the git revision
    registry: str  # "" or a prefix that ends with a slash

    @classmethod
    def of(cls, model: Path, store: str, tag: str | None, registry: str | None) -> "ReleaseImages":
        """Return the images of an artifact, after checking that the store holds the artifact.

        Raises BuildError and StoreError, and ContractMismatch if the files of the artifact differ
        from its contract.
        """
        folder = Path.cwd() / _ARTIFACTS_FOLDER
        if folder not in model.absolute().parents or " " in str(model):
            raise BuildError(
                f"MODEL: expected a version below {folder}, because Docker receives only this "
                f"folder, and a path without spaces, got {model}. To copy a version into it: "
                f"`python -m model_load pull --to {_ARTIFACTS_FOLDER}/…`"
            )
        contract = verify_files(model)
        if contract_in(store, contract.name, contract.version) != _contract_bytes(model):
            raise BuildError(
                f"STORE: {redact(store)} does not hold {contract.name}/{contract.version} with "
                f"the same contract.json as {model}. Publish this version first: images get "
                "deleted, the store keeps the original."
            )
        return cls(model, contract, tag, registry_prefix(registry))

    @property
    def tag(self) -> str:
        """The tag of the server. Raises BuildError without a tag and without a git revision."""
        return self.server_tag or _git_revision("--abbrev=12", "--dirty")

    @property
    def model_in_image(self) -> str:
        """The name of the image that contains the server and the model."""
        tag = tag_of(self.tag, self.contract.name, self.contract.version)
        return f"{self.registry}model_in_image:{tag}"

    @property
    def model_load(self) -> str:
        """The name of the image that contains the server and pulls the model."""
        return f"{self.registry}model_load:{self.tag}"

    @property
    def model_image(self) -> str:
        """The name of the image that contains the artifact only."""
        return f"{self.registry}model:{tag_of(self.contract.name, self.contract.version)}"

    def build(self) -> None:
        """Build the image of each mode and print the layer sizes. Raises DockerError."""
        seconds = {
            self.model_in_image: self._build(
                self.model_in_image, "model_in_image", *self._model_arguments()
            ),
            self.model_load: self._build(self.model_load, "model_load"),
        }
        layers = {image: image_layers(image) for image in seconds}
        _print_layers(layers, seconds)
        files = (self.artifact / MODEL_FILE, self.artifact / CONTRACT_FILE)
        _print_transfers(layers, sum(file.stat().st_size for file in files))

    def build_model_image(self) -> None:
        """Build the image of the artifact alone and print its layer sizes. Raises DockerError."""
        image = self.model_image
        options = ("--target", "model", *self._model_arguments())
        seconds = self._build(image, "model_in_image", *options)
        _print_layers({image: image_layers(image)}, {image: seconds})

    def _model_arguments(self) -> list[str]:
        return _build_arguments(
            MODEL=self.artifact.absolute().relative_to(Path.cwd()).as_posix(),
            MODEL_NAME=self.contract.name,
            MODEL_VERSION=self.contract.version,
            MODEL_SHA256=self.contract.model.sha256,
        )

    def _build(self, image: str, mode: str, *options: str) -> float:
        """Build an image and return the duration in seconds."""
        start = time.monotonic()
        version = image.rpartition(":")[2]
        try:
            revision = _git_revision("--abbrev=40", "--dirty")
        except BuildError:
            revision = "unknown"
        labels = _build_arguments(IMAGE=image, REVISION=revision, VERSION=version)
        docker(
            "build", "-f", f"Dockerfile.{mode}", "-t", image, *options, *labels, ".",
            show_progress=True,
        )  # fmt: skip
        return time.monotonic() - start


def tag_of(*parts: str) -> str:
    """Return a tag such as `iris-1`; different parts never have the same tag.

    The last two parts are the name and the version of a model. If they contain dashes, the tag
    can be split in several ways, so it ends with a hash. A tag that is too long is cut and also
    ends with a hash.
    """
    tag = "-".join(parts)
    if len(tag) <= _MAX_TAG_LENGTH and not any("-" in part for part in parts[-2:]):
        return tag
    return with_hash(tag, "/".join(parts), _MAX_TAG_LENGTH)


def _contract_bytes(artifact: Path) -> bytes:
    return (artifact / CONTRACT_FILE).read_bytes()


def _build_arguments(**values: str) -> list[str]:
    return [word for name, value in values.items() for word in ("--build-arg", f"{name}={value}")]


def _git_revision(*options: str) -> str:
    """Return the commit that is checked out; `-dirty` marks uncommitted changes."""
    # `--exclude=*` ignores git tags: the revision is always the hash of a commit.
    command = ["git", "describe", "--always", "--exclude=*", *options]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        raise BuildError(
            "IMAGE_TAG: expected a tag, because this folder has no git revision, got none. "
            "Set it: make build IMAGE_TAG=1"
        ) from None


def _part(layer: Layer) -> str:
    """Return the name of this project's layer, or `base` for a layer of the base image."""
    if layer.created_by.startswith(_LAYER_INSTRUCTION):
        return layer.created_by.removeprefix(_LAYER_INSTRUCTION).partition("/")[0]
    return "base"


def _print_layers(images: dict[str, list[Layer]], seconds: dict[str, float]) -> None:
    """Print the size of each part of each image, compressed too if a registry has the image."""
    console = Console(highlight=False)
    for image, layers in images.items():
        console.print(f"\n{image}, built in {seconds[image]:.0f} s", soft_wrap=True)
        table = _table("layer", "size", *(["compressed"] if _is_pushed(layers) else []))
        for part in dict.fromkeys(map(_part, layers)):
            table.add_row(part, *_sums([layer for layer in layers if _part(layer) == part]))
        table.add_section()
        table.add_row("total", *_sums(layers))
        console.print(table)


def _print_transfers(images: dict[str, list[Layer]], artifact_bytes: int) -> None:
    """Print the bytes that a node transfers for the first release and for later releases."""
    table = _table("image", "first model", "next model", "next server", "pulled at start")
    for image, layers in images.items():
        mode = repository(image).rpartition("/")[2]
        model_layers, server_layers = (
            [layer for layer in layers if _part(layer) in parts]
            for parts in ({"model"}, {"server", mode})
        )
        pulled = "nothing" if model_layers else decimal(artifact_bytes)
        transfers = [_sums(part)[-1] for part in (layers, model_layers, server_layers)]
        table.add_row(mode, *transfers, pulled)
    title = "What a node transfers, compressed"
    if not all(map(_is_pushed, images.values())):
        title = "What a node transfers, before compression: no registry has these images yet"
    Console(highlight=False).print(f"\n{title}", table, sep="\n")


def _table(*columns: str) -> Table:
    table = Table(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _is_pushed(layers: list[Layer]) -> bool:
    """Return whether a registry has these layers: only registries know the compressed size."""
    return all(layer.transfer_bytes is not None for layer in layers)


def _sums(layers: list[Layer]) -> list[str]:
    """Return the total size of layers and, if a registry has all, their compressed size."""
    sizes = [sum(layer.size_bytes for layer in layers)]
    if _is_pushed(layers):
        sizes.append(sum(layer.transfer_bytes or 0 for layer in layers))
    return [decimal(size) for size in sizes]
