"""Resolve a release: a server image and a model that are known to work together.

Brings the image to the cluster. Nothing here changes what the cluster runs.
"""

import json
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from artifact.contract import CONTRACT_FILE
from artifact.redact import redact
from artifact.uri import StoreUri, is_bucket
from artifact.verify import sha256_of
from release.compatibility.record import supported
from release.images.build import ReleaseImages
from release.images.docker import DockerError, docker, repository
from release.kubernetes.errors import ReleaseError
from release.kubernetes.kubectl import ClusterError, get
from release.kubernetes.manifests import SOURCES, Manifests, Source
from release.kubernetes.revision import Revision
from serving.settings import Mode


@dataclass(frozen=True)
class Options:
    """How a release reaches the cluster."""

    namespace: str
    # Where load mode gets the model. None: from the bucket if the store is one, else the volume.
    source: str | None
    # The command that brings an image to the cluster. The image is added as last argument.
    load_image: str
    # compatibility.json of `make compatibility`.
    record: Path
    # MEMORY=, the memory of a server.
    memory: str | None = None


def resolve_release(images: ReleaseImages, mode: Mode, store: str, options: Options) -> Manifests:
    """Return the manifests of a release, whose images are in the cluster afterwards.

    Raises ReleaseError if the server was not tested with the model, DockerError, ClusterError.
    """
    source = _source(mode, options.source, store)
    image = images.model_in_image if mode == "model_in_image" else images.model_load
    image_id = _image_id(image)
    contract_sha256 = sha256_of(images.artifact / CONTRACT_FILE)
    _check_compatible(image, image_id, images, contract_sha256, options.record)
    reference = _load_into_cluster(image, image_id, options)
    location = store if source == "bucket" else None
    if source == "image_volume":
        location = _load_into_cluster(images.model_image, _image_id(images.model_image), options)
    return Manifests(
        mode=mode,
        namespace=options.namespace,
        contract=images.contract,
        contract_sha256=contract_sha256,
        image=reference,
        image_id=image_id,
        path=images.artifact.absolute().relative_to(Path.cwd()).as_posix(),
        source=source,
        location=location,
        memory=options.memory,
    )


def _image_id(image: str) -> str:
    try:
        return docker("image", "inspect", "--format={{.Id}}", image).strip()
    except DockerError as error:
        target = "make build-model" if repository(image).endswith("model") else "make build"
        raise ReleaseError(f"{error}\nBuild it first: {target}, with the same variables.") from None


def _check_compatible(
    image: str, image_id: str, images: ReleaseImages, contract_sha256: str, record: Path
) -> None:
    is_supported = supported(image_id, contract_sha256, record)
    model = f"{images.contract.name}/{images.contract.version}"
    if is_supported is None:
        raise ReleaseError(
            f"{image} was not tested with {model}: {record} has no result for them. "
            "Run `make compatibility` first."
        )
    if not is_supported:
        raise ReleaseError(
            f"{image} cannot serve {model}. {record.with_suffix('.md')} has the reason."
        )


def _source(mode: Mode, requested: str | None, store: str) -> Source | None:
    if mode == "model_in_image":
        if requested:
            raise ReleaseError(f"SOURCE: expected none in MODE=model_in_image, got {requested}")
        return None
    name = requested or ("bucket" if is_bucket(store) else "volume")
    for source in SOURCES:
        if source == name:
            break
    else:
        raise ReleaseError(f"SOURCE: expected {', '.join(SOURCES)}, got {requested}")
    if (source == "bucket") is not is_bucket(store) and source != "image_volume":
        kind = "a bucket, such as s3://…" if source == "bucket" else "a directory"
        raise ReleaseError(f"STORE: expected {kind}, with SOURCE={source}, got {redact(store)}")
    if source == "bucket" and StoreUri.parse(store).headers:
        raise ReleaseError(
            f"STORE: expected no user:password@ with SOURCE=bucket, got {redact(store)}: everyone "
            "who can read pods could read the password. Use an s3://, gs:// or az:// store, whose "
            "credentials are environment variables in the Secret `model-store`, or "
            "SOURCE=image_volume."
        )
    return source


def _load_into_cluster(image: str, image_id: str, options: Options) -> str:
    """Bring an image to the cluster; return a reference that will always mean this image.

    That is the digest if a registry has the image. Otherwise it is the tag, which must not have
    been the tag of another image.
    """
    command = [*shlex.split(options.load_image), image]
    print(f"$ {redact(shlex.join(command))}", flush=True)
    try:
        process = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)  # noqa: S603 - the user's
    except OSError as error:
        raise ReleaseError(f"LOAD_IMAGE: cannot run {command[0]}: {error.strerror}") from None
    if process.returncode:
        raise ReleaseError(f"LOAD_IMAGE: {shlex.join(command)}: exit status {process.returncode}")
    digests = json.loads(docker("image", "inspect", "--format={{json .RepoDigests}}", image))
    for digest in digests or ():
        if repository(digest) == repository(image):
            return str(digest)
    _check_tag(image, image_id, options.namespace)
    return image


def _check_tag(image: str, image_id: str, namespace: str) -> None:
    """Reject a tag that the rollout history has for another image: a rollback would get this one.

    Raises ReleaseError.
    """
    try:
        replica_sets = get("replicasets", f"--namespace={namespace}")["items"]
    except ClusterError:
        return  # the next request to the cluster reports the error
    for revision in map(Revision.of, replica_sets):
        if revision.image == image and revision.image_id != image_id:
            raise ReleaseError(
                f"{image}: the cluster has a release with another image of this name. Commit your "
                "changes or choose another IMAGE_TAG, and build again: a tag must not move."
            )
