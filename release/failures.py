"""What a tool may fail with that is no defect of it: said in one line, and status 1."""

import contextlib
import sys
from collections.abc import Iterator

from release.compatibility.record import CompatibilityError
from release.compatibility.servers import LockError
from release.docker import DockerError
from release.images import BuildError
from release.kubernetes.kubectl import ClusterError
from release.kubernetes.pair import PairError
from release.prune import PruneError
from release.store import StoreError
from serving.contract import ContractMismatch
from serving.errors import StartupError
from serving.redact import redact

_FAILURES = (
    BuildError,
    ClusterError,
    CompatibilityError,
    ContractMismatch,
    DockerError,
    LockError,
    PairError,
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
