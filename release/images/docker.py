"""Run the docker command, and the names and labels of images.

The environment variable DOCKER names the program to use instead of `docker`.
"""

import os
import re
import subprocess

# The labels that the Dockerfiles set. They identify an image as this project's.
TITLE = "org.opencontainers.image.title"
REVISION = "org.opencontainers.image.revision"


class DockerError(Exception):
    """A docker command failed; the message contains its error output."""


def docker_program() -> str:
    """Return the program to run: the value of DOCKER, or `docker`."""
    return os.environ.get("DOCKER") or "docker"


def registry_prefix(registry: str | None) -> str:
    """Return the prefix of image names in a registry, with a slash; "" without a registry."""
    return f"{registry.rstrip('/')}/" if registry else ""


def repository(image: str) -> str:
    """Return the name of an image without tag and digest."""
    # A colon before a slash separates the port of the registry, not a tag.
    return re.sub(r":[^/]*$", "", image.partition("@")[0])


def docker(*arguments: str, show_progress: bool = False) -> str:
    """Run a docker command and return its output.

    show_progress: print stderr, where docker writes its progress. Raises DockerError with the
    error output of the command.
    """
    program = docker_program()
    try:
        result = subprocess.run(  # noqa: S603 - the user chooses the program
            [program, *arguments],
            # Older Docker engines use BuildKit only on request; the Dockerfiles need its mounts.
            env={**os.environ, "DOCKER_BUILDKIT": "1"},
            stdout=subprocess.PIPE,
            stderr=None if show_progress else subprocess.PIPE,
            text=True,
            check=True,
        )
    except OSError as error:
        raise DockerError(f"DOCKER: cannot run {program}: {error.strerror}") from None
    except subprocess.CalledProcessError as error:
        message = (error.stderr or "").strip() or "see the output above"
        raise DockerError(f"{program} {arguments[0]}: {message}") from None
    return result.stdout
