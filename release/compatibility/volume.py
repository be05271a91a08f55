"""A Docker volume with artifacts of a store, for containers to read.

Used by record.py. Copied through Docker, not mounted from this machine: the engine may
run on another one, and the servers' user may not be allowed to read the store.
"""

import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from artifact.contract import CONTRACT_FILE, MODEL_FILE
from release.images.docker import DockerError, docker, docker_program

MOUNT = "/artifacts"


@contextmanager
def volume_with(store: Path, artifacts: Iterable[str], image: str) -> Iterator[str]:
    """Make a volume with artifacts of a store, such as `iris/1`; it is gone in the end.

    image: any local one; a container of it is made for the copy, and not started. Raises
    DockerError.
    """
    volume = docker("volume", "create").strip()
    try:
        container = docker("create", f"--volume={volume}:{MOUNT}", image).strip()
        try:
            _copy(store, artifacts, container)
        finally:
            docker("rm", container)
        yield volume
    finally:
        docker("volume", "rm", volume)


def _copy(store: Path, artifacts: Iterable[str], container: str) -> None:
    with subprocess.Popen(  # noqa: S603 - the user's own docker
        [docker_program(), "cp", "-", f"{container}:{MOUNT}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as copying:
        assert copying.stdin is not None  # noqa: S101 - they are pipes
        assert copying.stderr is not None  # noqa: S101
        # When Docker ends early, it says why.
        with suppress(BrokenPipeError):
            _pack(store, artifacts, copying.stdin)
        with suppress(BrokenPipeError):
            copying.stdin.close()
        said = copying.stderr.read().decode(errors="replace").strip()
    if copying.returncode:
        raise DockerError(f"{docker_program()} cp: {said}")


def _pack(store: Path, artifacts: Iterable[str], to: IO[bytes]) -> None:
    with tarfile.open(fileobj=to, mode="w|", dereference=True) as tar:
        for artifact in artifacts:
            directory = store / artifact
            files = (directory / CONTRACT_FILE, directory / MODEL_FILE)
            for path in (directory.parent, directory, *(file for file in files if file.exists())):
                name = path.relative_to(store).as_posix()
                tar.add(path, name, recursive=False, filter=_readable)


def _readable(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return it as root's, for everybody to read."""
    member.mode = 0o755 if member.isdir() else 0o644
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
