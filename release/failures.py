"""What a tool may fail with that is no defect of it: said in one line, and status 1."""

import contextlib
import sys
from collections.abc import Iterator

from artifact.contract import ContractMismatch
from artifact.errors import StoreError
from artifact.redact import redact
from release.compatibility.record import CompatibilityError
from release.compatibility.servers import LockError
from release.images.build import BuildError
from release.images.docker import DockerError
from release.images.prune import PruneError
from release.kubernetes.errors import ReleaseError
from release.kubernetes.kubectl import ClusterError
from serving.errors import StartupError

_FAILURES = (
    BuildError,
    ClusterError,
    CompatibilityError,
    ContractMismatch,
    DockerError,
    LockError,
    ReleaseError,
    PruneError,
    StartupError,
    StoreError,
)


@contextlib.contextmanager
def failures_as_text() -> Iterator[None]:
    """End the process with the message of a known error, without secrets and traceback."""
    try:
        yield
    except _FAILURES as failed:
        sys.exit(redact(str(failed)))
