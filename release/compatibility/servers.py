"""The servers that artifacts can be tried in: local images, and a lock's environments.

Used by record.py. A server runs trial.py with its own Python, and is asked what it is;
its labels and its lock are not believed.
"""

import hashlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from release.compatibility.volume import MOUNT
from release.images.docker import REVISION, TITLE, DockerError, docker, registry_prefix, repository

ROOT = Path(__file__).parent.parent.parent
# Environments are made again when this directory is removed.
ENVIRONMENTS = ROOT / ".venv" / "compatibility"
TRY_SECONDS = 300

# The last layers of an image, which are not the server's: the mode, and the model.
_OWN_LAYERS = {"model_load": 1, "model_in_image": 2}
# Of the layers before those: what marks pip as removed, which Docker dates. Behind it are the
# libraries, the server and its folder.
_MARKS = -4
_TRIAL = Path(__file__).with_name("trial.py")


class NotTried(Exception):  # noqa: N818 - what it says of a server
    """Why a server could not try any artifact."""


class LockError(Exception):
    """A lock file of which no environment can be made."""


class Facts(BaseModel):
    """A part of the record: immutable, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Image(Facts):
    """A local image; digests are those of the registries it was pulled from or pushed to."""

    id: str
    names: tuple[str, ...]
    digests: tuple[str, ...]
    revision: str | None

    def is_(self, asked: str) -> bool:
        """Return whether this is its id, or its digest with or without a name before it."""
        bare = (digest.rpartition("@")[2] for digest in self.digests)
        return asked in (self.id, *self.digests, *bare)


class Software(Facts):
    """What a server answered about itself."""

    python: str
    onnxruntime: str
    numpy: str
    machine: str


class Ended(Facts):
    """How the verification of an artifact ended: its exit status and what it said."""

    status: int | None
    said: str
    at: datetime

    @property
    def reason(self) -> str | None:
        """Why the artifact is refused, on one line; None when it is not."""
        if self.status == 0:
            return None
        if self.status is not None and self.status < 0:
            return f"killed by signal {-self.status}"
        lines = self.said.strip().splitlines() or [f"exit status {self.status}"]
        differences = [line[4:] for line in lines if line.startswith("  - ")]
        if any(line.startswith("ContractMismatch: ") for line in lines) and differences:
            return "; ".join(differences)
        return lines[-1].strip()


class Trial(Facts):
    """What trial.py printed: the server, and how each artifact ended, by `name/version`."""

    software: Software
    ended: dict[str, Ended]


@dataclass(frozen=True)
class ImageServer:
    """A server in images whose layers differ in mode and model only; the first is run."""

    images: tuple[Image, ...]

    @property
    def name(self) -> str:
        """The first name of the image that is run."""
        return (*self.images[0].names, *self.images[0].digests)[0]

    @property
    def id(self) -> str:
        """The id of the image that is run."""
        return self.images[0].id

    def trial(self, volume: str, artifacts: Sequence[str]) -> Trial:
        """Try artifacts of a Docker volume, confined as in a cluster. Raises NotTried."""
        name = f"compatibility-{uuid.uuid4().hex}"
        try:
            printed = docker(
                "run", "--rm", f"--name={name}", "--network=none", "--read-only", "--cap-drop=ALL",
                "--security-opt=no-new-privileges", "--entrypoint=python",
                f"--volume={volume}:{MOUNT}:ro", self.id, *_command(MOUNT, artifacts),
            )  # fmt: skip
        except DockerError as error:
            raise NotTried(_one_line(str(error))) from None
        except KeyboardInterrupt:
            # The command has ended; the container would go on, and keep its volume.
            with suppress(DockerError):
                docker("rm", "--force", name)
            raise
        return _trial(printed)


@dataclass(frozen=True)
class LockServer:
    """This folder's server with the libraries of a lock file, and its Python."""

    lock: Path
    python: Path
    id: str
    images: tuple[Image, ...] = ()

    @classmethod
    def of(cls, lock: Path, environments: Path = ENVIRONMENTS) -> "LockServer":
        """Return the server of a lock; its environment is made unless it is there.

        Raises LockError.
        """
        try:
            sha256 = hashlib.sha256(lock.read_bytes()).hexdigest()
        except OSError as error:
            raise LockError(f"LOCK: {lock}: expected a lock file: {error.strerror}") from None
        directory = environments.absolute() / f"{sha256[:16]}-{sys.implementation.cache_tag}"
        python, complete = directory / "bin" / "python", directory / "complete"
        if not (complete.exists() and python.exists()):
            print(f"Install {lock} into {os.path.relpath(directory)}, once", flush=True)
            complete.unlink(missing_ok=True)
            _install(lock, directory, python)
            complete.touch()
        return cls(lock, python, f"sha256:{sha256}")

    @property
    def name(self) -> str:
        """The path of the lock."""
        return str(self.lock)

    def trial(self, store: str, artifacts: Sequence[str]) -> Trial:
        """Try artifacts of a store on this machine. Raises NotTried."""
        done = subprocess.run(  # noqa: S603 - a Python of our own
            [str(self.python), *_command(str(Path(store).absolute()), artifacts)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:]
            raise NotTried(_one_line("".join(last)) or f"exit status {done.returncode}")
        return _trial(done.stdout)


def local_servers(registry: str | None) -> list[ImageServer]:
    """Return the servers in this project's local images.

    registry: what comes before the images' names; None and "" take all. Raises DockerError.
    """
    only = [f"--filter=reference={registry_prefix(registry)}*"] if registry else []
    ids = docker("images", "--quiet", "--no-trunc", f"--filter=label={TITLE}", *only).split()
    return grouped(json.loads(docker("image", "inspect", *dict.fromkeys(ids)))) if ids else []


def grouped(inspected: list[dict[str, Any]]) -> list[ImageServer]:
    """Return the servers in images as `docker image inspect` describes them.

    Those that have an image without a model come first, and the newest of them. A revision
    does not tell servers apart: it may be unknown, or of a changed tree. Layers do.
    """
    servers: dict[tuple[str, ...], list[Image]] = {}
    newest_first = sorted(inspected, key=lambda image: str(image["Created"]), reverse=True)
    # One without a model, if there is one, gives the server its name.
    for found in sorted(newest_first, key=lambda image: _title(image) != "model_load"):
        image = _image(found)
        own = _OWN_LAYERS.get(_title(found))
        if own and (image.names or image.digests):
            layers = found["RootFS"]["Layers"][:-own]
            servers.setdefault(tuple(layers[:_MARKS] + layers[_MARKS + 1 :]), []).append(image)
    return [ImageServer(tuple(images)) for images in servers.values()]


def _title(inspected: dict[str, Any]) -> str:
    return str(_labels(inspected).get(TITLE, ""))


def _labels(inspected: dict[str, Any]) -> dict[str, str]:
    return inspected["Config"].get("Labels") or {}


def _image(inspected: dict[str, Any]) -> Image:
    return Image(
        id=inspected["Id"],
        names=tuple(sorted(inspected.get("RepoTags") or (), key=partial(_rank, _title(inspected)))),
        digests=tuple(sorted(inspected.get("RepoDigests") or ())),
        revision=_labels(inspected).get(REVISION),
    )


def _rank(title: str, name: str) -> tuple[bool, str]:
    """Return what sorts the names that `make build` gives before others."""
    return repository(name).rpartition("/")[2] != title, name


def _command(directory: str, artifacts: Sequence[str]) -> list[str]:
    return ["-c", _TRIAL.read_text(encoding="utf-8"), str(TRY_SECONDS), directory, *artifacts]


def _trial(printed: str) -> Trial:
    try:
        return Trial.model_validate_json(printed)
    except ValidationError:
        raise NotTried(f"expected a verdict as JSON, got {_one_line(printed)[:200]!r}") from None


def _install(lock: Path, directory: Path, python: Path) -> None:
    """Make an environment with what a lock pins, and nothing else."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    options = ["--disable-pip-version-check", "--no-input", "--no-deps"]
    if "--hash=" in lock.read_text(encoding="utf-8"):
        options.append("--require-hashes")
    for command in (
        [sys.executable, "-m", "venv", "--clear", "--without-pip", str(directory)],
        [*pip, *options, "--requirement", str(lock)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
            said = _one_line(" ".join(errors) or done.stderr or done.stdout)
            raise LockError(
                f"LOCK: {lock} does not install on Python {sys.version.split()[0]}: {said}"
            )


def _one_line(text: str) -> str:
    return " ".join(text.split())
