"""Turn expected errors of the tools into one message and exit status 1, without a traceback."""

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

# Errors that the user can correct. Any other exception is a bug and keeps its traceback.
_EXPECTED_ERRORS = (
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
    """End the process with the message of an expected error, without its credentials."""
    try:
        yield
    except _EXPECTED_ERRORS as error:
        sys.exit(redact(str(error)))
