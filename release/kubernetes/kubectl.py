"""Run the user's kubectl, with its credentials and its current context."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

_TIMEOUT_SECONDS = 10
# kubectl's message if its configuration names no cluster, which is not an error here.
_NO_CONTEXT = "current-context is not set"
_NOT_FOUND = "(NotFound)"


class ClusterError(Exception):
    """kubectl failed, or the cluster is unreachable."""


class NotFoundError(ClusterError):
    """The cluster has no such object."""


def kubectl(*arguments: str, stdin: str | None = None, seconds: float = 0) -> str:
    """Return the output of a kubectl command.

    stdin: text for kubectl to read. seconds: the timeout; 0 is the default for short requests.
    Raises ClusterError with kubectl's error output, and NotFoundError if an object is missing.
    """
    seconds = seconds or _TIMEOUT_SECONDS
    # Files, not pipes: a credential plugin that outlives kubectl would keep a pipe open.
    with (
        tempfile.TemporaryFile("w+") as standard_input,
        tempfile.TemporaryFile("w+") as output,
        tempfile.TemporaryFile("w+") as errors,
    ):
        standard_input.write(stdin or "")
        standard_input.seek(0)
        try:
            process = subprocess.run(  # noqa: S603 - the user's own kubectl
                ["kubectl", *arguments],  # noqa: S607
                stdin=standard_input,
                stdout=output,
                stderr=errors,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(
                f"kubectl {arguments[0]}: no response within {seconds:g} s"
            ) from None
        except OSError as error:
            raise ClusterError(f"kubectl: cannot be run: {error.strerror}") from None
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            reason = errors.read().strip() or f"exit status {process.returncode}"
            error_class = NotFoundError if _NOT_FOUND in reason else ClusterError
            raise error_class(f"kubectl {arguments[0]}: {reason}")
        return output.read()


def get(resource: str, *options: str) -> Any:
    """Return an object, or a list of objects. Raises ClusterError and NotFoundError."""
    output = kubectl("get", resource, *options, "--output=json")
    try:
        return json.loads(output)
    except ValueError:
        raise ClusterError(f"kubectl get {resource}: expected JSON, got {output[:80]!r}") from None


def current_context() -> str | None:
    """Return kubectl's current context, None if no cluster is configured.

    Raises ClusterError if a configuration exists but cannot be read.
    """
    if shutil.which("kubectl") is None:
        if file := _configuration():
            raise ClusterError(
                f"kubectl: expected on PATH, because {file} may name a cluster; not found. "
                "Install kubectl or remove that file."
            )
        return None
    try:
        return kubectl("config", "current-context").strip()
    except ClusterError as error:
        if _NO_CONTEXT in str(error):
            return None
        raise


def server_version() -> str:
    """Return the version of the cluster's API server, such as 1.36.2.

    Raises ClusterError if no cluster is configured or the cluster does not respond.
    """
    if current_context() is None:
        raise ClusterError("kubectl: no cluster is configured")
    version = json.loads(kubectl("version", "--output=json"))["serverVersion"]["gitVersion"]
    return str(version).removeprefix("v").partition("-")[0]


def _configuration() -> Path | None:
    """Return the first configuration file with content that kubectl would read."""
    paths = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    files = [Path(path) for path in paths.split(os.pathsep) if path]
    return next((file for file in files if file.is_file() and file.stat().st_size), None)
