"""Download an artifact without serving it: `python -m model_load pull --to DIR`.

Leaves DIR/model.onnx and DIR/contract.json, the contract last; nothing if it fails.
"""

import argparse
import shutil
import signal
import sys
from pathlib import Path

from artifact.contract import CONTRACT_FILE, MODEL_FILE, ContractMismatch
from artifact.errors import StoreError
from artifact.redact import redact
from artifact.uri import ArtifactUri, is_bucket
from artifact.verify import verify_files
from model_load.alias import local_artifact
from model_load.cache import Cache
from model_load.pull import Deadline, Pull
from model_load.settings import ModelLoadSettings
from serving import logs


def pull(arguments: list[str]) -> int:
    """Download the artifact of MODEL_URI into a directory; return the exit status."""
    parser = argparse.ArgumentParser("python -m model_load pull", description=__doc__)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="target directory")
    directory: Path = parser.parse_args(arguments).to
    # Let signals kill the process. A server that is stopped exits with 0, but a stopped pull has
    # failed; and Python's own handlers do not run while obstore blocks the main thread.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        settings = ModelLoadSettings.from_environment()
        logs.configure(settings.log_level)
        _pull(settings, directory)
    except (StoreError, ContractMismatch) as error:
        print(f"model_load pull failed: {redact(str(error))}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _pull(settings: ModelLoadSettings, directory: Path) -> None:
    uri = settings.model_uri
    if uri is None:
        raise StoreError("MODEL_URI: expected to be set, it is not: there is nothing to pull")
    staging = directory / ".pulling"
    try:
        artifact = _artifact(uri, staging, settings.model_pull_seconds)
        verify_files(artifact, settings.contract_sha256)
        staging.mkdir(parents=True, exist_ok=True)
        for name in (MODEL_FILE, CONTRACT_FILE):
            staged = staging / name
            if is_bucket(uri):
                # Moved, not copied, so that a large model needs its space only once.
                (artifact / name).resolve().replace(staged)
            else:
                shutil.copyfile(artifact / name, staged)
            staged.chmod(0o644)
            staged.replace(directory / name)
    except OSError as error:
        raise StoreError(f"--to {directory}: {error.strerror}: {error.filename}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _artifact(uri: str, staging: Path, seconds: float) -> Path:
    """Return the directory of the artifact: downloaded into `staging`, or in its local store."""
    if not is_bucket(uri):
        return local_artifact(uri)
    pull = Pull(ArtifactUri.parse(uri), Deadline(seconds))
    return pull.download_to_cache(Cache(staging, None))
