"""Build the images of a release, and say what each layer of them costs: `make build`.

The artifact must be in the model store already: an image is thrown away one day, the
model that was in it is not.
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
from release.images.docker import docker, prefix_of, repository
from release.images.docker_images import Layer, layers
from release.names import with_hash

# The Dockerfiles copy a layer from a folder of its name.
_COPY = "COPY /layers/"
# What .dockerignore lets in of artifacts.
_CONTEXT = "models"
# The limit of the OCI distribution specification.
_MAX_TAG = 128


class BuildError(Exception):
    """What keeps images from being built, for the person who asked for them."""


@dataclass(frozen=True)
class Release:
    """An artifact below this directory and the server in it, as images.

    server_tag: None takes the git revision. registry: "" or what ends in a slash.
    """

    model: Path
    contract: Contract
    server_tag: str | None
    registry: str

    @classmethod
    def of(cls, model: Path, store: str, tag: str | None, registry: str | None) -> "Release":
        """Return what is to be built, the store being seen to hold the model.

        Raises BuildError and StoreError, and ContractMismatch when the artifact is not what
        its contract says.
        """
        below = Path.cwd() / _CONTEXT
        if below not in model.absolute().parents or " " in str(model):
            raise BuildError(
                f"MODEL: expected a version below {below}, which Docker is sent, and no space in "
                f"it, got {model}. `python -m model_load pull --to {_CONTEXT}/…` brings one there."
            )
        contract = verify_files(model)
        held = contract_in(store, contract.name, contract.version)
        if held != (model / CONTRACT_FILE).read_bytes():
            raise BuildError(
                f"STORE: {redact(store)} does not hold {contract.name}/{contract.version} as it is "
                f"in {model}. Publish it first: an image is no place to keep a model."
            )
        return cls(model, contract, tag, prefix_of(registry))

    @property
    def tag(self) -> str:
        """The server's tag. Raises BuildError where there is neither one nor a revision."""
        return self.server_tag or _revision("--abbrev=12", "--dirty")

    @property
    def image(self) -> str:
        """The image of the server with the model in it."""
        tag = tag_of(self.tag, self.contract.name, self.contract.version)
        return f"{self.registry}model_in_image:{tag}"

    @property
    def server(self) -> str:
        """The image of the server that loads a model."""
        return f"{self.registry}model_load:{self.tag}"

    @property
    def data(self) -> str:
        """The image that is the artifact alone."""
        return f"{self.registry}model:{tag_of(self.contract.name, self.contract.version)}"

    def build(self) -> None:
        """Build the image of each mode, and print what they weigh. Raises DockerError."""
        seconds = {
            self.image: self._build(self.image, "model_in_image", *self._of_the_model()),
            self.server: self._build(self.server, "model_load"),
        }
        made = {image: layers(image) for image in seconds}
        _show(made, seconds)
        files = (self.model / MODEL_FILE, self.model / CONTRACT_FILE)
        _show_transfers(made, sum(file.stat().st_size for file in files))

    def build_data(self) -> None:
        """Build the artifact's own image, and print what it weighs. Raises DockerError."""
        options = ("--target", "model", *self._of_the_model())
        seconds = {self.data: self._build(self.data, "model_in_image", *options)}
        _show({self.data: layers(self.data)}, seconds)

    def _of_the_model(self) -> list[str]:
        return _arguments(
            MODEL=self.model.absolute().relative_to(Path.cwd()).as_posix(),
            MODEL_NAME=self.contract.name,
            MODEL_VERSION=self.contract.version,
            MODEL_SHA256=self.contract.model.sha256,
        )

    def _build(self, image: str, mode: str, *options: str) -> float:
        """Build an image, and return the seconds that took."""
        started = time.monotonic()
        version = image.rpartition(":")[2]
        try:
            revision = _revision("--abbrev=40", "--dirty")
        except BuildError:
            revision = "unknown"
        labels = _arguments(IMAGE=image, REVISION=revision, VERSION=version)
        docker("build", "-f", f"Dockerfile.{mode}", "-t", image, *options, *labels, ".", show=True)
        return time.monotonic() - started


def tag_of(*parts: str) -> str:
    """Return a tag such as `iris-1`; different parts never have the same tag.

    The last two parts are the name and the version of a model. If they contain dashes, the tag
    can be split in several ways, so it ends with a hash. So does a tag that is too long.
    """
    tag = "-".join(parts)
    if len(tag) <= _MAX_TAG and not any("-" in part for part in parts[-2:]):
        return tag
    return with_hash(tag, "/".join(parts), _MAX_TAG)


def _arguments(**values: str) -> list[str]:
    return [word for name, value in values.items() for word in ("--build-arg", f"{name}={value}")]


def _revision(*options: str) -> str:
    """Return the commit that is checked out, marked where it was changed."""
    command = ["git", "describe", "--always", "--exclude=*", *options]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        raise BuildError("IMAGE_TAG: expected to be set where there is no git revision") from None


def _part(layer: Layer) -> str:
    """Return which part of an image a layer is: of ours by its instruction, else the base."""
    if layer.created_by.startswith(_COPY):
        return layer.created_by.removeprefix(_COPY).partition("/")[0]
    return "base"


def _show(images: dict[str, list[Layer]], seconds: dict[str, float]) -> None:
    """Print what each part of each image adds, and its compressed size if a registry has it."""
    console = Console(highlight=False)
    for image, made in images.items():
        console.print(f"\n{image}, built in {seconds[image]:.0f} s", soft_wrap=True)
        table = _table("layer", "adds", *(["compressed"] if _pushed(made) else []))
        for part in dict.fromkeys(map(_part, made)):
            table.add_row(part, *_sums([layer for layer in made if _part(layer) == part]))
        table.add_section()
        table.add_row("in all", *_sums(made))
        console.print(table)


def _show_transfers(images: dict[str, list[Layer]], artifact_bytes: int) -> None:
    """Print what a node transfers: at first all of it, then what changed."""
    table = _table("image", "first model", "next model", "next server", "pulled at start")
    for image, made in images.items():
        mode = repository(image).rpartition("/")[2]
        model, server = (
            [layer for layer in made if _part(layer) in parts]
            for parts in ({"model"}, {"server", mode})
        )
        pulled = "nothing" if model else decimal(artifact_bytes)
        table.add_row(mode, *(_sums(some)[-1] for some in (made, model, server)), pulled)
    title = "What a node transfers, compressed"
    if not all(map(_pushed, images.values())):
        title = "What a node transfers, before compression: no registry has these images yet"
    Console(highlight=False).print(f"\n{title}", table, sep="\n")


def _table(*columns: str) -> Table:
    table = Table(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _pushed(some: list[Layer]) -> bool:
    return all(layer.transfer_bytes is not None for layer in some)


def _sums(some: list[Layer]) -> list[str]:
    """Return the size of layers, and what a registry sends of them if one has them."""
    transfers = [layer.transfer_bytes for layer in some if layer.transfer_bytes is not None]
    sizes = [sum(layer.size_bytes for layer in some), *([sum(transfers)] if _pushed(some) else [])]
    return [decimal(size) for size in sizes]
