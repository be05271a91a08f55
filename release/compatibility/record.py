"""Load every artifact of a store in every server, and keep the results: `make compatibility`.

Invariant: a combination counts as supported only after the server has loaded the artifact and
reproduced its golden rows. Versions are never compared instead.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import ValidationError

from artifact.contract import CONTRACT_FILE, ContractMismatch, read_contract
from artifact.reader import versions_in
from artifact.redact import redact
from artifact.uri import is_bucket, local_path
from artifact.verify import sha256_of
from release.compatibility.servers import (
    ENVIRONMENTS,
    Image,
    ImageServer,
    LockServer,
    RecordModel,
    ServerNotChecked,
    ServerReport,
    Software,
    local_servers,
)
from release.compatibility.volume import volume_with
from release.images.docker import DockerError
from release.kubernetes.kubectl import ClusterError
from release.kubernetes.pods import running_releases

RECORD = "compatibility.json"
NO_SERVER = (
    "make compatibility: expected a server (an image of this project or a lock file), got none. "
    "Build the images with `make build`, or name a lock file: "
    "`make compatibility LOCK=serving/requirements.txt`."
)


class CompatibilityError(Exception):
    """The record cannot be created or read; the message states what to do."""


class Server(RecordModel):
    """A server that loaded the artifacts."""

    name: str
    kind: Literal["image", "lock"]
    id: str  # of the image that was run, or the sha256 of the lock file
    images: tuple[Image, ...]  # all images that contain this server
    software: Software | None  # None if the server does not start


class Artifact(RecordModel):
    """An artifact that the servers loaded."""

    name: str
    version: str
    contract_sha256: str
    opsets: dict[str, int] | None  # None if the contract cannot be read
    ir_version: int | None  # None if the contract cannot be read

    @property
    def path(self) -> str:
        """The path in the store."""
        return f"{self.name}/{self.version}"


class Cell(RecordModel):
    """The result of one artifact in one server."""

    artifact: str
    contract_sha256: str
    server: str
    supported: bool | None  # None if the server does not start
    reason: str | None  # why it is not supported or unknown
    tried_at: datetime


class Compatibility(RecordModel):
    """The record of one run of `make compatibility`."""

    made_by: str  # the command that creates the record again
    made_at: datetime
    store: str
    notes: tuple[str, ...]
    servers: tuple[Server, ...]
    artifacts: tuple[Artifact, ...]
    cells: tuple[Cell, ...]

    @classmethod
    def check(
        cls,
        store: str,
        locks: Sequence[Path] = (),
        registry: str | None = None,
        environments: Path = ENVIRONMENTS,
    ) -> Self:
        """Load every artifact of a store in every local image and with every lock file.

        registry: the prefix of the images' names; None and "" mean all images. Raises
        CompatibilityError, DockerError, and LockError.
        """
        directory = _directory(store)
        artifacts = _artifacts(directory)
        images, notes = _images(registry)
        if not images and not locks:
            raise CompatibilityError(" ".join([NO_SERVER, *notes]))
        # Two lock files with the same content are one server.
        lock_servers = {
            server.id: server for server in (LockServer.of(lock, environments) for lock in locks)
        }
        results = list(_check_all(directory, artifacts, images, [*lock_servers.values()]))
        record = cls(
            made_by=redact(_command(store, locks, registry)),
            made_at=datetime.now(UTC).replace(microsecond=0),
            store=store,
            notes=tuple(map(redact, notes)),
            servers=tuple(server for server, _ in results),
            artifacts=tuple(artifacts),
            cells=tuple(cell for _, cells in results for cell in cells),
        )
        cluster_notes = map(redact, record.cluster_notes())
        return record.model_copy(update={"notes": (*record.notes, *cluster_notes)})

    @classmethod
    def read(cls, record: Path) -> Self:
        """Read a record. Raises FileNotFoundError and CompatibilityError."""
        try:
            return cls.model_validate_json(record.read_bytes())
        except ValidationError as error:
            raise CompatibilityError(
                f"{record}: expected a record of `make compatibility`, got {error.error_count()} "
                "invalid fields. Run it again."
            ) from None

    def cluster_notes(self) -> Iterator[str]:
        """Yield for each release in the cluster whether this record supports it."""
        verdicts = {True: "supported", False: "rejected", None: "not checked here"}
        try:
            for track, release in running_releases().items():
                verdict = verdicts[self.supported(release.image_id, release.contract_sha256)]
                yield f"The cluster runs {release} as {track}: {verdict}."
        except ClusterError as error:
            yield f"The releases of the cluster are unknown: {error}"

    def supported(self, image: str, contract_sha256: str) -> bool | None:
        """Return whether an image, by id or digest, serves an artifact; None: unknown."""
        servers = {
            server.id
            for server in self.servers
            if any(candidate.matches(image) for candidate in server.images)
        }
        verdicts = {
            cell.supported
            for cell in self.cells
            if cell.server in servers and cell.contract_sha256 == contract_sha256
        }
        return False if False in verdicts else (True if True in verdicts else None)


def supported(image: str, contract_sha256: str, record: Path) -> bool | None:
    """Return whether the image of a release serves its artifact; None: unknown, or no record.

    image: the id or digest `sha256:…`, never a tag, because tags move. Raises
    CompatibilityError if the record is invalid.
    """
    try:
        return Compatibility.read(record).supported(image, contract_sha256)
    except FileNotFoundError:
        return None


def _directory(store: str) -> Path:
    """Return the directory of a store. Raises CompatibilityError for buckets."""
    if is_bucket(store):
        shown = redact(store)
        raise CompatibilityError(
            f"STORE: expected a directory, got {shown}. Pull the models into a directory first: "
            f"MODEL_URI={shown}/iris/1 .venv/bin/python -m model_load pull --to models/iris/1"
        )
    directory = local_path(store, "STORE")
    if not directory.is_dir():
        raise CompatibilityError(f"STORE: expected a directory, got none at {directory}")
    return directory


def _artifacts(store: Path) -> list[Artifact]:
    """Return every version of a store. A version exists only once it has a contract."""
    versions = versions_in(store)
    if not versions:
        raise CompatibilityError(
            f"STORE: expected <name>/<version>/{CONTRACT_FILE} in {store}, got none. "
            "Publish a model first: make train"
        )
    return [_artifact(path) for path in sorted(versions, key=_natural_order)]


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """Return a sort key that puts version 10 after version 9."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def _artifact(directory: Path) -> Artifact:
    try:
        model = read_contract(directory).model
    except ContractMismatch:
        model = None
    return Artifact(
        name=directory.parent.name,
        version=directory.name,
        contract_sha256=sha256_of(directory / CONTRACT_FILE),
        opsets=model.opsets if model else None,
        ir_version=model.ir_version if model else None,
    )


def _images(registry: str | None) -> tuple[list[ImageServer], list[str]]:
    """Return the servers in local images, and a note if there are none."""
    try:
        servers = local_servers(registry)
    except DockerError as error:
        return [], [f"No image was checked: {error}"]
    below = f" below {registry}" if registry else ""
    note = f"No image was checked: Docker has no image of this project{below}."
    return servers, [] if servers else [note]


def _check_all(
    store: Path,
    artifacts: list[Artifact],
    images: list[ImageServer],
    locks: list[LockServer],
) -> Iterator[tuple[Server, list[Cell]]]:
    """Yield each server with one cell for each artifact. Raises DockerError."""
    paths = [artifact.path for artifact in artifacts]
    if images:
        with volume_with(store, paths, images[0].id) as volume:
            for image in images:
                yield _check_server(image, volume, artifacts)
    for lock in locks:
        yield _check_server(lock, str(store), artifacts)


def _check_server(
    server: ImageServer | LockServer, store: str, artifacts: list[Artifact]
) -> tuple[Server, list[Cell]]:
    print(f"Load every artifact in {server.name}", flush=True)
    report: ServerReport | ServerNotChecked
    try:
        report = server.verify(store, [artifact.path for artifact in artifacts])
    except ServerNotChecked as error:
        report = error
    cells = [_cell(artifact, server.id, report) for artifact in artifacts]
    return _server(server, report), cells


def _server(server: ImageServer | LockServer, report: ServerReport | ServerNotChecked) -> Server:
    return Server(
        name=server.name,
        kind="image" if isinstance(server, ImageServer) else "lock",
        id=server.id,
        images=server.images,
        software=report.software if isinstance(report, ServerReport) else None,
    )


def _cell(artifact: Artifact, server: str, report: ServerReport | ServerNotChecked) -> Cell:
    if isinstance(report, ServerReport):
        result = report.results[artifact.path]
        supported, reason, at = result.reason is None, result.reason, result.at
    else:
        supported, reason, at = None, str(report), datetime.now(UTC).replace(microsecond=0)
    return Cell(
        artifact=artifact.path,
        contract_sha256=artifact.contract_sha256,
        server=server,
        supported=supported,
        reason=reason and redact(reason),
        tried_at=at,
    )


def _command(store: str, locks: Sequence[Path], registry: str | None) -> str:
    """Return the command that creates the record again."""
    values = {"STORE": store, "LOCK": " ".join(map(str, locks)), "REGISTRY": registry or ""}
    words = [f"{name}={shlex.quote(value)}" for name, value in values.items() if value]
    return " ".join(["make", "compatibility", *words])
