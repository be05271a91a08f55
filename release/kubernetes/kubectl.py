"""Kubernetes, through the user's own kubectl: its credentials, its current context."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

_SECONDS = 10
# How kubectl says that there is nobody to ask, which is no error here.
_NO_CONTEXT = "current-context is not set"
_NOT_FOUND = "(NotFound)"


class ClusterError(Exception):
    """Why a cluster did not do, or could not be asked, what it was."""


class NotFound(ClusterError):  # noqa: N818 - what it says of an object
    """That the cluster has no such object."""


def kubectl(*arguments: str, stdin: str | None = None, seconds: float = 0) -> str:
    """Return what kubectl printed.

    stdin: what it reads. seconds: how long it may take, 0 for as long as a question. Raises
    ClusterError with its last words, NotFound where that is all there is to say.
    """
    seconds = seconds or _SECONDS
    # Files, not pipes: a credential plugin that outlives kubectl would keep a pipe open.
    with (
        tempfile.TemporaryFile("w+") as given,
        tempfile.TemporaryFile("w+") as printed,
        tempfile.TemporaryFile("w+") as said,
    ):
        given.write(stdin or "")
        given.seek(0)
        try:
            done = subprocess.run(  # noqa: S603 - the user's own kubectl
                ["kubectl", *arguments],  # noqa: S607
                stdin=given,
                stdout=printed,
                stderr=said,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"kubectl {arguments[0]}: no answer within {seconds:g} s") from None
        except OSError as error:
            raise ClusterError(f"kubectl: cannot be run: {error.strerror}") from None
        printed.seek(0)
        said.seek(0)
        if done.returncode:
            why = said.read().strip() or f"exit status {done.returncode}"
            kind = NotFound if _NOT_FOUND in why else ClusterError
            raise kind(f"kubectl {arguments[0]}: {why}")
        return printed.read()


def get(what: str, *options: str) -> Any:
    """Return an object of the cluster, or a list of them. Raises ClusterError and NotFound."""
    answer = kubectl("get", what, *options, "--output=json")
    try:
        return json.loads(answer)
    except ValueError:
        raise ClusterError(f"kubectl get {what}: expected JSON, got {answer[:80]!r}") from None


def current_context() -> str | None:
    """Return which of the configured clusters kubectl asks; None where none is configured.

    Raises ClusterError when the configuration is there and cannot be read.
    """
    if shutil.which("kubectl") is None:
        if found := _configuration():
            raise ClusterError(
                f"kubectl: expected on PATH because {found} may name a cluster, got none"
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

    Raises ClusterError where no cluster is configured or it does not answer.
    """
    if current_context() is None:
        raise ClusterError("kubectl: no cluster is configured")
    version = json.loads(kubectl("version", "--output=json"))["serverVersion"]["gitVersion"]
    return str(version).removeprefix("v").partition("-")[0]


def _configuration() -> Path | None:
    """Return the first file with content among those that kubectl would read."""
    paths = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    files = [Path(path) for path in paths.split(os.pathsep) if path]
    return next((file for file in files if file.is_file() and file.stat().st_size), None)
