"""A temporary Docker volume with artifacts of a model store.

The artifacts are copied through Docker, not mounted: the Docker engine may run on another
machine, and the user of the server may not have the permission to read the store.
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
    """Create a volume with artifacts of a store, such as `iris/1`; delete it at the end.

    image: any local image. `docker cp` needs a container, so a container of this image is created
    and never started. Raises DockerError.
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
    with subprocess.Popen(  # noqa: S603 - the user chooses the program
        [docker_program(), "cp", "-", f"{container}:{MOUNT}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None  # noqa: S101 - pipes are not None
        assert process.stderr is not None  # noqa: S101
        # If Docker exits early, its stderr explains more than the broken pipe.
        with suppress(BrokenPipeError):
            _write_tar(store, artifacts, process.stdin)
        with suppress(BrokenPipeError):
            process.stdin.close()
        message = process.stderr.read().decode(errors="replace").strip()
    if process.returncode:
        raise DockerError(f"{docker_program()} cp: {message}")


def _write_tar(store: Path, artifacts: Iterable[str], file: IO[bytes]) -> None:
    with tarfile.open(fileobj=file, mode="w|", dereference=True) as tar:
        for artifact in artifacts:
            directory = store / artifact
            files = (directory / CONTRACT_FILE, directory / MODEL_FILE)
            for path in (directory.parent, directory, *filter(Path.exists, files)):
                name = path.relative_to(store).as_posix()
                tar.add(path, name, recursive=False, filter=_readable_by_all)


def _readable_by_all(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Make a file readable for the server's user, whatever its permissions in the store."""
    member.mode = 0o755 if member.isdir() else 0o644
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
