"""Which server serves which artifact: `make compatibility`.

Found by trying: every artifact of the store is loaded in every server that servers.py finds,
its golden rows included. The record is JSON for tools and a page (matrix.py) for people.
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
    Facts,
    Image,
    ImageServer,
    LockServer,
    NotTried,
    Software,
    Trial,
    local_servers,
)
from release.compatibility.volume import volume_with
from release.images.docker import DockerError
from release.kubernetes.kubectl import ClusterError
from release.kubernetes.pods import running_releases

RECORD = "compatibility.json"
NO_SERVER = (
    "make compatibility: expected a server, an image of this project or a lock file, got none. "
    "Build the images, make build, or name a lock: "
    "make compatibility LOCK=serving/requirements.txt."
)


class CompatibilityError(Exception):
    """What keeps the question from being answered, for the person who asked it."""


class Server(Facts):
    """A server that was tried.

    id: of the image that was run, or the sha256 of the lock. images: all that hold this very
    server. software: what it answered; None where it could not be run.
    """

    name: str
    kind: Literal["image", "lock"]
    id: str
    images: tuple[Image, ...]
    software: Software | None


class Artifact(Facts):
    """An artifact that was tried; opsets and IR version are None where the contract is broken."""

    name: str
    version: str
    contract_sha256: str
    opsets: dict[str, int] | None
    ir_version: int | None

    @property
    def path(self) -> str:
        """Where it is in the store."""
        return f"{self.name}/{self.version}"


class Cell(Facts):
    """One artifact in one server. supported: None where it could not be tried."""

    artifact: str
    contract_sha256: str
    server: str
    supported: bool | None
    reason: str | None
    tried_at: datetime


class Compatibility(Facts):
    """The record of one run of `make compatibility`."""

    made_by: str
    made_at: datetime
    store: str
    notes: tuple[str, ...]
    servers: tuple[Server, ...]
    artifacts: tuple[Artifact, ...]
    cells: tuple[Cell, ...]

    @classmethod
    def find(
        cls,
        store: str,
        locks: Sequence[Path] = (),
        registry: str | None = None,
        environments: Path = ENVIRONMENTS,
    ) -> Self:
        """Try every artifact of a store in every local image and in the server of every lock.

        registry: what comes before the images' names; None and "" take all. Raises
        CompatibilityError, DockerError, and LockError.
        """
        directory = _directory(store)
        artifacts = _artifacts(directory)
        images, notes = _images(registry)
        if not images and not locks:
            raise CompatibilityError(" ".join([NO_SERVER, *notes]))
        of_locks = {one.id: one for one in (LockServer.of(lock, environments) for lock in locks)}
        tried = list(_tried(directory, artifacts, images, [*of_locks.values()]))
        found = cls(
            made_by=redact(_command(store, locks, registry)),
            made_at=datetime.now(UTC).replace(microsecond=0),
            store=store,
            notes=tuple(map(redact, notes)),
            servers=tuple(server for server, _ in tried),
            artifacts=tuple(artifacts),
            cells=tuple(cell for _, cells in tried for cell in cells),
        )
        cluster = map(redact, found.of_cluster())
        return found.model_copy(update={"notes": (*found.notes, *cluster)})

    @classmethod
    def read(cls, record: Path) -> Self:
        """Return what was recorded. Raises FileNotFoundError, and CompatibilityError."""
        try:
            return cls.model_validate_json(record.read_bytes())
        except ValidationError as error:
            raise CompatibilityError(
                f"{record}: expected what `make compatibility` writes, got {error.error_count()} "
                "fields that are not so. Run it again."
            ) from None

    def of_cluster(self) -> Iterator[str]:
        """Yield of everything that runs in the cluster whether it was seen to fit."""
        words = {True: "supported", False: "refused", None: "not tried here"}
        try:
            for where, release in running_releases().items():
                verdict = words[self.supported(release.image_id, release.contract_sha256)]
                yield f"The cluster runs {release} as {where}: {verdict}."
        except ClusterError as error:
            yield f"The cluster was not asked: {error}"

    def supported(self, image: str, contract_sha256: str) -> bool | None:
        """Return whether an image, by id or digest, serves an artifact; None: was not tried."""
        servers = {
            server.id for server in self.servers if any(one.is_(image) for one in server.images)
        }
        verdicts = {
            cell.supported
            for cell in self.cells
            if cell.server in servers and cell.contract_sha256 == contract_sha256
        }
        return False if False in verdicts else (True if True in verdicts else None)


def supported(image: str, contract_sha256: str, record: Path) -> bool | None:
    """Return whether the image of a release was seen to serve its artifact.

    image: its id or its digest, `sha256:…`, never a tag, which may move. None: nobody has
    tried, or there is no record. Raises CompatibilityError for a record that is none.
    """
    try:
        return Compatibility.read(record).supported(image, contract_sha256)
    except FileNotFoundError:
        return None


def _directory(store: str) -> Path:
    if is_bucket(store):
        shown = redact(store)
        raise CompatibilityError(
            f"STORE: expected a directory, got {shown}. Pull the models to try into one first: "
            f"MODEL_URI={shown}/iris/1 .venv/bin/python -m model_load pull --to models/iris/1"
        )
    directory = local_path(store, "STORE")
    if not directory.is_dir():
        raise CompatibilityError(f"STORE: expected a directory, got none at {directory}")
    return directory


def _artifacts(store: Path) -> list[Artifact]:
    """Return every version of a store that has a contract: without one it is not there yet."""
    versions = versions_in(store)
    if not versions:
        raise CompatibilityError(
            f"STORE: expected <name>/<version>/{CONTRACT_FILE} in {store}, got none. "
            "Publish a model first: make train"
        )
    return [_artifact(path) for path in sorted(versions, key=_natural)]


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return what sorts version 10 behind version 9."""
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
    """Return the servers in local images, and what is to be said where there are none."""
    try:
        found = local_servers(registry)
    except DockerError as error:
        return [], [f"No image was tried: {error}"]
    where = f" below {registry}" if registry else ""
    return found, [] if found else [f"No image was tried: Docker has none of this project{where}."]


def _tried(
    store: Path,
    artifacts: list[Artifact],
    images: list[ImageServer],
    locks: list[LockServer],
) -> Iterator[tuple[Server, list[Cell]]]:
    """Yield each server with its cells, one for each artifact. Raises DockerError."""
    paths = [artifact.path for artifact in artifacts]
    if images:
        with volume_with(store, paths, images[0].id) as volume:
            for image in images:
                yield _tried_in(image, volume, artifacts)
    for lock in locks:
        yield _tried_in(lock, str(store), artifacts)


def _tried_in(
    server: ImageServer | LockServer, place: str, artifacts: list[Artifact]
) -> tuple[Server, list[Cell]]:
    print(f"Load every artifact in {server.name}", flush=True)
    outcome: Trial | NotTried
    try:
        outcome = server.trial(place, [artifact.path for artifact in artifacts])
    except NotTried as failed:
        outcome = failed
    return _server(server, outcome), [_cell(one, server.id, outcome) for one in artifacts]


def _server(server: ImageServer | LockServer, outcome: Trial | NotTried) -> Server:
    return Server(
        name=server.name,
        kind="image" if isinstance(server, ImageServer) else "lock",
        id=server.id,
        images=server.images,
        software=outcome.software if isinstance(outcome, Trial) else None,
    )


def _cell(artifact: Artifact, server: str, outcome: Trial | NotTried) -> Cell:
    if isinstance(outcome, Trial):
        ended = outcome.ended[artifact.path]
        supported, reason, at = ended.reason is None, ended.reason, ended.at
    else:
        supported, reason, at = None, str(outcome), datetime.now(UTC).replace(microsecond=0)
    return Cell(
        artifact=artifact.path,
        contract_sha256=artifact.contract_sha256,
        server=server,
        supported=supported,
        reason=reason and redact(reason),
        tried_at=at,
    )


def _command(store: str, locks: Sequence[Path], registry: str | None) -> str:
    """Return what makes the record again."""
    given = {"STORE": store, "LOCK": " ".join(map(str, locks)), "REGISTRY": registry or ""}
    words = [f"{name}={shlex.quote(value)}" for name, value in given.items() if value]
    return " ".join(["make", "compatibility", *words])
