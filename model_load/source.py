"""Where the model is in load mode: in a model store, named by MODEL_URI.

Used by __main__.py; from the directory on, both modes are the same server.
"""

import contextlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from artifact.contract import ContractMismatch
from artifact.errors import StoreError
from artifact.redact import redact
from artifact.uri import ArtifactUri, is_bucket
from model_load.alias import local_artifact
from model_load.cache import Cache, hold
from model_load.settings import ModelLoadSettings
from serving.workers.forked import ForkedTask
from serving.workers.model_source import ModelSource, ServedVersion
from serving.workers.shared_value import SharedValue


def find(settings: ModelLoadSettings) -> ModelSource:
    """Begin to get the artifact; return what waits for it, and what follows its alias.

    A local one is opened in place. One in a bucket is pulled by a child while this process
    goes on. Raises StoreError, at once or from the wait, that names the URI and what to check.
    """
    if settings.model_dir is not None:
        directory = settings.model_dir
        return ModelSource(lambda: directory)
    uri, holding = str(settings.model_uri), contextlib.ExitStack()
    if is_bucket(uri):
        wait = _begin_to_pull(ArtifactUri.parse(uri), settings, holding)
    else:
        path = local_artifact(uri)
        wait = partial(Path, path)
    if settings.model_poll_seconds is None:
        return ModelSource(wait)
    return ModelSource(wait, partial(_follow, settings, holding), holding.close)


def _begin_to_pull(
    uri: ArtifactUri, settings: ModelLoadSettings, holding: contextlib.ExitStack
) -> Callable[[], Path]:
    child = ForkedTask(lambda: _pull(uri, settings))

    def wait() -> Path:
        said = child.result()
        directory = _result(uri, json.loads(said) if said else {})
        holding.callback(os.close, hold(directory))
        return directory

    return wait


def _pull(uri: ArtifactUri, settings: ModelLoadSettings) -> bytes:
    """Pull, and return what came of it for the parent."""
    said: dict[str, Any]
    try:
        from model_load.pull import Deadline, Pull  # noqa: PLC0415 - never in the parent

        cache = Cache(settings.model_cache_dir, settings.model_cache_max_bytes)
        pull = Pull(uri, Deadline(settings.model_pull_seconds))
        said = {"directory": str(pull.into(cache))}
    except ContractMismatch as mismatch:
        said = {"subject": mismatch.subject, "differences": mismatch.differences}
    except StoreError as error:
        said = {"error": str(error)}
    except BaseException as error:  # noqa: BLE001 - a panic of obstore is no Exception
        said = {"error": f"{uri.uri}: {type(error).__name__}: {redact(str(error))}"}
    return json.dumps(said).encode()


def _result(uri: ArtifactUri, said: dict[str, Any]) -> Path:
    """Return what the child pulled; raises what it raised."""
    if "differences" in said:
        raise ContractMismatch(said["subject"], said["differences"])
    if "directory" not in said:
        raise StoreError(said.get("error", f"{uri.uri}: the pull was killed. Too little memory?"))
    return Path(said["directory"])


def _follow(
    settings: ModelLoadSettings,
    inherited: contextlib.ExitStack,
    current: SharedValue[ServedVersion],
) -> None:
    from model_load.alias_watcher import Follower  # noqa: PLC0415 - not before the first pull has begun

    follower = Follower(settings, current)
    inherited.close()  # it has a hold of its own
    follower.run()
