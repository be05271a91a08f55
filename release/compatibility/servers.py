"""The servers that load artifacts for `make compatibility`: local images and lock files.

Invariant: a server reports its own versions. Labels of images and pins of locks may be wrong.
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
from release.images.docker import (
    REVISION,
    TITLE,
    DockerError,
    docker,
    registry_prefix,
    repository,
)

ROOT = Path(__file__).parent.parent.parent
# Environments of lock files. They are created again if this directory is deleted.
ENVIRONMENTS = ROOT / ".venv" / "compatibility"
VERIFY_SECONDS = 300

# The number of last layers that are not the server: the mode's code, and the model.
_LAYERS_ABOVE_SERVER = {"model_load": 1, "model_in_image": 2}
# The position, in the layers of the server, of the layer that removes pip. It is followed by the
# libraries, the server's code, and its working directory. Docker writes the date into this layer,
# so it differs between builds of the same server.
_DATED_LAYER = -4
_CHECK_SCRIPT = Path(__file__).with_name("check_script.py")


class ServerNotChecked(Exception):  # noqa: N818 - a result, not a failure of this program
    """A server could not load any artifact, because it does not start."""


class LockError(Exception):
    """A lock file cannot be read, or its packages cannot be installed."""


class RecordModel(BaseModel):
    """A part of the record: immutable, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Image(RecordModel):
    """A local image."""

    id: str
    names: tuple[str, ...]
    digests: tuple[str, ...]  # from the registries that it was pulled from or pushed to
    revision: str | None

    def matches(self, reference: str) -> bool:
        """Return whether a reference is the id or a digest, with or without a name before it."""
        bare = (digest.rpartition("@")[2] for digest in self.digests)
        return reference in (self.id, *self.digests, *bare)


class Software(RecordModel):
    """The versions that a server reports about itself."""

    python: str
    onnxruntime: str
    numpy: str
    machine: str


class Verification(RecordModel):
    """The result of the verification of one artifact."""

    status: int | None  # the exit status; None after a timeout
    stderr: str
    at: datetime

    @property
    def reason(self) -> str | None:
        """Why the server cannot serve the artifact, in one line; None if it can."""
        if self.status == 0:
            return None
        if self.status is not None and self.status < 0:
            return f"killed by signal {-self.status}"
        lines = self.stderr.strip().splitlines() or [f"exit status {self.status}"]
        mismatches = [line[4:] for line in lines if line.startswith("  - ")]
        if any(line.startswith("ContractMismatch: ") for line in lines) and mismatches:
            return "; ".join(mismatches)
        return lines[-1].strip()


class ServerReport(RecordModel):
    """The output of check_script.py."""

    software: Software
    results: dict[str, Verification]  # by `name/version`


@dataclass(frozen=True)
class ImageServer:
    """A server, and the images that contain it; they differ in mode and model only."""

    images: tuple[Image, ...]  # the first is run

    @property
    def name(self) -> str:
        """The first name of the image that is run."""
        return (*self.images[0].names, *self.images[0].digests)[0]

    @property
    def id(self) -> str:
        """The id of the image that is run."""
        return self.images[0].id

    def verify(self, volume: str, artifacts: Sequence[str]) -> ServerReport:
        """Load artifacts of a Docker volume in a container. Raises ServerNotChecked."""
        name = f"compatibility-{uuid.uuid4().hex}"
        try:
            # The container has the same restrictions as in a cluster.
            output = docker(
                "run", "--rm", f"--name={name}", "--network=none", "--read-only", "--cap-drop=ALL",
                "--security-opt=no-new-privileges", "--entrypoint=python",
                f"--volume={volume}:{MOUNT}:ro", self.id, *_arguments(MOUNT, artifacts),
            )  # fmt: skip
        except DockerError as error:
            raise ServerNotChecked(_one_line(str(error))) from None
        except KeyboardInterrupt:
            # Ctrl-C ends the docker command only: the container would keep running, and a volume in
            # use cannot be deleted.
            with suppress(DockerError):
                docker("rm", "--force", name)
            raise
        return _parse_report(output)


@dataclass(frozen=True)
class LockServer:
    """The server of this working directory with the libraries of a lock file."""

    lock: Path
    python: Path  # of the environment with these libraries
    id: str  # the sha256 of the lock file
    images: tuple[Image, ...] = ()

    @classmethod
    def of(cls, lock: Path, environments: Path = ENVIRONMENTS) -> "LockServer":
        """Return the server of a lock file; create its environment on first use.

        Raises LockError.
        """
        try:
            sha256 = hashlib.sha256(lock.read_bytes()).hexdigest()
        except OSError as error:
            raise LockError(f"LOCK: {lock}: expected a lock file: {error.strerror}") from None
        directory = environments.absolute() / f"{sha256[:16]}-{sys.implementation.cache_tag}"
        # The file `complete` is created last: without it, an installation was interrupted.
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

    def verify(self, store: str, artifacts: Sequence[str]) -> ServerReport:
        """Load artifacts of a store on this machine. Raises ServerNotChecked."""
        result = subprocess.run(  # noqa: S603 - the Python of the environment
            [str(self.python), *_arguments(str(Path(store).absolute()), artifacts)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            last_line = "".join(result.stderr.strip().splitlines()[-1:])
            raise ServerNotChecked(_one_line(last_line) or f"exit status {result.returncode}")
        return _parse_report(result.stdout)


def local_servers(registry: str | None) -> list[ImageServer]:
    """Return the servers in this project's local images.

    registry: the prefix of the images' names; None and "" mean all images. Raises DockerError.
    """
    below = [f"--filter=reference={registry_prefix(registry)}*"] if registry else []
    ids = docker("images", "--quiet", "--no-trunc", f"--filter=label={TITLE}", *below).split()
    return grouped(json.loads(docker("image", "inspect", *dict.fromkeys(ids)))) if ids else []


def grouped(records: list[dict[str, Any]]) -> list[ImageServer]:
    """Group records of `docker image inspect` by the server that the images contain.

    Servers that have an image without a model are first, newest first. Images with equal layers
    contain the same server. A revision does not identify a server: it may be unknown, or of a
    changed working directory.
    """
    servers: dict[tuple[str, ...], list[Image]] = {}
    newest_first = sorted(records, key=lambda record: str(record["Created"]), reverse=True)
    # An image without a model comes first in its group, so it gives the server its name.
    for record in sorted(newest_first, key=lambda record: _title(record) != "model_load"):
        image = _image(record)
        above = _LAYERS_ABOVE_SERVER.get(_title(record))
        if above and (image.names or image.digests):
            layers = record["RootFS"]["Layers"][:-above]
            key = tuple(layers[:_DATED_LAYER] + layers[_DATED_LAYER + 1 :])
            servers.setdefault(key, []).append(image)
    return [ImageServer(tuple(images)) for images in servers.values()]


def _title(record: dict[str, Any]) -> str:
    return str(_labels(record).get(TITLE, ""))


def _labels(record: dict[str, Any]) -> dict[str, str]:
    return record["Config"].get("Labels") or {}


def _image(record: dict[str, Any]) -> Image:
    by_rank = partial(_name_rank, _title(record))
    return Image(
        id=record["Id"],
        names=tuple(sorted(record.get("RepoTags") or (), key=by_rank)),
        digests=tuple(sorted(record.get("RepoDigests") or ())),
        revision=_labels(record).get(REVISION),
    )


def _name_rank(title: str, name: str) -> tuple[bool, str]:
    """Return a sort key that puts names that `make build` gives before other names."""
    return repository(name).rpartition("/")[2] != title, name


def _arguments(directory: str, artifacts: Sequence[str]) -> list[str]:
    """Return the arguments with which Python runs check_script.py."""
    script = _CHECK_SCRIPT.read_text(encoding="utf-8")
    return ["-c", script, str(VERIFY_SECONDS), directory, *artifacts]


def _parse_report(output: str) -> ServerReport:
    try:
        return ServerReport.model_validate_json(output)
    except ValidationError:
        raise ServerNotChecked(f"expected a JSON report, got {_one_line(output)[:200]!r}") from None


def _install(lock: Path, directory: Path, python: Path) -> None:
    """Create an environment with exactly the packages of a lock file. Raises LockError."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    options = ["--disable-pip-version-check", "--no-input", "--no-deps"]
    if "--hash=" in lock.read_text(encoding="utf-8"):
        options.append("--require-hashes")
    for command in (
        [sys.executable, "-m", "venv", "--clear", "--without-pip", str(directory)],
        [*pip, *options, "--requirement", str(lock)],
    ):
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if result.returncode:
            errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR: ")]
            reason = _one_line(" ".join(errors) or result.stderr or result.stdout)
            raise LockError(
                f"LOCK: {lock} does not install on Python {sys.version.split()[0]}: {reason}"
            )


def _one_line(text: str) -> str:
    return " ".join(text.split())
