"""Docker, through its own command line: what of it the tools need.

DOCKER in the environment names another program than `docker`.
"""

import os
import re
import subprocess

# The labels by which this project's Dockerfiles say what an image is.
TITLE = "org.opencontainers.image.title"
REVISION = "org.opencontainers.image.revision"


class DockerError(Exception):
    """What Docker said when it did not do what it was asked."""


def program() -> str:
    """Return the name of the command: DOCKER's, or `docker`."""
    return os.environ.get("DOCKER") or "docker"


def prefix_of(registry: str | None) -> str:
    """Return what comes before the names of images in a registry; "" where none is named."""
    return f"{registry.rstrip('/')}/" if registry else ""


def repository(name: str) -> str:
    """Return an image's name without tag and digest: a colon before a slash is a port's."""
    return re.sub(r":[^/]*$", "", name.partition("@")[0])


def docker(*arguments: str, show: bool = False) -> str:
    """Run a command and return what it printed; with show, its progress is for the user to see.

    Raises DockerError with its last words.
    """
    try:
        done = subprocess.run(  # noqa: S603 - the user's own docker
            [program(), *arguments],
            env={**os.environ, "DOCKER_BUILDKIT": "1"},
            stdout=subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            text=True,
            check=True,
        )
    except OSError as error:
        raise DockerError(f"DOCKER: cannot run {program()}: {error.strerror}") from None
    except subprocess.CalledProcessError as failed:
        said = (failed.stderr or "").strip() or "see above"
        raise DockerError(f"{program()} {arguments[0]}: {said}") from None
    return done.stdout
