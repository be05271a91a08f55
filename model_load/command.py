"""`python -m model_load pull --to DIR`: the pull alone.

Leaves DIR/model.onnx and DIR/contract.json, the contract last, or nothing.
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
    """Pull MODEL_URI into a directory; return the exit status."""
    parser = argparse.ArgumentParser("python -m model_load pull", description=__doc__)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="where to leave it")
    directory: Path = parser.parse_args(arguments).to
    # Unlike a server that was asked to stop, a pull that was has not done what it was for;
    # and obstore does not let Python's own handlers run while it waits.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        settings = ModelLoadSettings.from_environment()
        logs.configure(settings.log_level)
        _pull(settings, directory)
    except (StoreError, ContractMismatch) as error:
        print(f"model_load pulls nothing. {redact(str(error))}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _pull(settings: ModelLoadSettings, directory: Path) -> None:
    uri = settings.model_uri
    if uri is None:
        raise StoreError("MODEL_URI: expected to be set, it is not: there is nothing to pull")
    staging = directory / ".pulling"
    try:
        if is_bucket(uri):
            cache = Cache(staging, None)
            pulled = Pull(ArtifactUri.parse(uri), Deadline(settings.model_pull_seconds)).into(cache)
        else:
            pulled = local_artifact(uri)
        verify_files(pulled, settings.contract_sha256)
        staging.mkdir(parents=True, exist_ok=True)
        for name in (MODEL_FILE, CONTRACT_FILE):
            beside = staging / name
            if is_bucket(uri):
                # Out of the cache that ends with this process: a large model is there once.
                (pulled / name).resolve().replace(beside)
            else:
                shutil.copyfile(pulled / name, beside)
            beside.chmod(0o644)
            beside.replace(directory / name)
    except OSError as error:
        raise StoreError(f"--to {directory}: {error.strerror}: {error.filename}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
