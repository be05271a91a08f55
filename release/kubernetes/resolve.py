"""What is to be released: a server's image and a model that were seen to fit each other.

Used by deploy.py and canary.py. Nothing here changes what the cluster runs.
"""

import json
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from artifact.contract import CONTRACT_FILE
from artifact.redact import redact
from artifact.uri import StoreUri
from artifact.verify import sha256_of
from release.compatibility.record import supported
from release.images.build import ReleaseImages
from release.images.docker import DockerError, docker, repository
from release.kubernetes.deployment import Revision
from release.kubernetes.kubectl import ClusterError, get
from release.kubernetes.manifests import SOURCES, Manifests, Source
from serving.settings import Mode


class PairError(Exception):
    """Why an image and a model are not released together."""


@dataclass(frozen=True)
class Options:
    """How a pair reaches the cluster.

    source: where load mode gets the model; None takes the store if that is a bucket, else the
    volume. load_image: the command that brings an image to the cluster, which it gets as its
    last argument. record: compatibility.json of `make compatibility`.
    """

    namespace: str
    source: str | None
    load_image: str
    record: Path


def pair(release: ReleaseImages, mode: Mode, store: str, options: Options) -> Manifests:
    """Return the manifests of a model with the server's image, which is in the cluster then.

    Raises PairError for a pair that nobody has seen load, DockerError, ClusterError.
    """
    source = _source(mode, options.source, store)
    image = release.model_in_image if mode == "model_in_image" else release.model_load
    image_id = _id(image)
    contract_sha256 = sha256_of(release.artifact / CONTRACT_FILE)
    _check_compatible(image, image_id, release, contract_sha256, options.record)
    reference = _in_cluster(image, image_id, options)
    where = store if source == "bucket" else None
    if source == "image_volume":
        where = _in_cluster(release.model_image, _id(release.model_image), options)
    return Manifests(
        mode=mode,
        namespace=options.namespace,
        contract=release.contract,
        contract_sha256=contract_sha256,
        image=reference,
        image_id=image_id,
        path=release.artifact.absolute().relative_to(Path.cwd()).as_posix(),
        source=source,
        where=where,
    )


def _id(image: str) -> str:
    try:
        return docker("image", "inspect", "--format={{.Id}}", image).strip()
    except DockerError as error:
        make = "make build-model" if repository(image).endswith("model") else "make build"
        raise PairError(f"{error}\nBuild it first: {make}, with the same variables.") from None


def _check_compatible(
    image: str, image_id: str, release: ReleaseImages, contract_sha256: str, record: Path
) -> None:
    seen = supported(image_id, contract_sha256, record)
    model = f"{release.contract.name}/{release.contract.version}"
    if seen is None:
        raise PairError(
            f"{image} and {model}: nobody has seen that server load that model; {record} does not "
            "say so. Run `make compatibility` first."
        )
    if not seen:
        raise PairError(f"{image} refuses {model}; {record.with_suffix('.md')} says why.")


def _source(mode: Mode, asked: str | None, store: str) -> Source | None:
    if mode == "model_in_image":
        if asked:
            raise PairError(f"SOURCE: expected none in MODE=model_in_image, got {asked}")
        return None
    chosen = asked or ("bucket" if "://" in store else "volume")
    for source in SOURCES:
        if source == chosen:
            break
    else:
        raise PairError(f"SOURCE: expected {', '.join(SOURCES)}, got {asked}")
    if (source == "bucket") is not ("://" in store) and source != "image_volume":
        raise PairError(f"SOURCE={source} does not go with STORE={redact(store)}")
    if source == "bucket" and StoreUri.parse(store).headers:
        raise PairError(
            f"STORE: expected no user:password@ with SOURCE=bucket, got {redact(store)}: whoever "
            "may read pods could read it. Use an s3://, gs:// or az:// store, whose credentials "
            "are environment variables in the Secret `model-store`, or SOURCE=image_volume."
        )
    return source


def _in_cluster(image: str, image_id: str, options: Options) -> str:
    """Bring an image to the cluster and return what it is called there, for good.

    By the digest that a registry has given it, where it went to one; else by its tag, which
    must not have been another image's.
    """
    command = [*shlex.split(options.load_image), image]
    print(f"$ {redact(shlex.join(command))}", flush=True)
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)  # noqa: S603 - the user's
    except OSError as error:
        raise PairError(f"LOAD_IMAGE: cannot run {command[0]}: {error.strerror}") from None
    if done.returncode:
        raise PairError(f"LOAD_IMAGE: {shlex.join(command)}: exit status {done.returncode}")
    digests = json.loads(docker("image", "inspect", "--format={{json .RepoDigests}}", image))
    for digest in digests or ():
        if repository(digest) == repository(image):
            return str(digest)
    _check_tag(image, image_id, options.namespace)
    return image


def _check_tag(image: str, image_id: str, namespace: str) -> None:
    """Refuse a tag that is another image's in a release: a rollback would not bring that back."""
    try:
        sets = get("replicasets", f"--namespace={namespace}")["items"]
    except ClusterError:
        return  # what is deployed then fails by itself
    for revision in map(Revision.of, sets):
        if revision.image == image and revision.image_id != image_id:
            raise PairError(
                f"{image}: the cluster has a release of another image of that name. Commit, or "
                "choose another IMAGE_TAG, and build it again: a tag must not move."
            )
