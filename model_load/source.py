"""Find the model of load mode: an artifact in a model store, named by MODEL_URI, or MODEL_DIR.

Returns a verified local directory, like image mode; the server does not know the difference.
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
from model_load.cache import Cache, lock_for_use
from model_load.settings import ModelLoadSettings
from serving.workers.forked import ForkedTask
from serving.workers.model_source import ModelSource, ServedVersion
from serving.workers.shared_value import SharedValue


def find(settings: ModelLoadSettings) -> ModelSource:
    """Start to get the artifact; return how to wait for it and how to watch its alias.

    A local artifact is opened in place. One in a bucket is downloaded by a child process while
    this process continues its start-up. Raises StoreError, at once or from the wait, that names
    the URI and what to check.
    """
    if settings.model_dir is not None:
        directory = settings.model_dir
        return ModelSource(lambda: directory)
    uri, cache_lock = str(settings.model_uri), contextlib.ExitStack()
    if is_bucket(uri):
        wait = _start_pull(ArtifactUri.parse(uri), settings, cache_lock)
    else:
        path = local_artifact(uri)
        wait = partial(Path, path)
    if settings.model_poll_seconds is None:
        return ModelSource(wait)
    return ModelSource(wait, partial(_watch, settings, cache_lock), cache_lock.close)


def _start_pull(
    uri: ArtifactUri, settings: ModelLoadSettings, cache_lock: contextlib.ExitStack
) -> Callable[[], Path]:
    # In a child, because this process forks the workers: obstore hangs in a forked child if the
    # parent has used it.
    child = ForkedTask(lambda: _pull(uri, settings))

    def wait() -> Path:
        result = child.result()
        directory = _directory(uri, json.loads(result) if result else {})
        cache_lock.callback(os.close, lock_for_use(directory))
        return directory

    return wait


def _pull(uri: ArtifactUri, settings: ModelLoadSettings) -> bytes:
    """Download the artifact; return the directory or the error as JSON, for the parent."""
    result: dict[str, Any]
    try:
        from model_load.pull import Deadline, Pull  # noqa: PLC0415 - never in a process that forks

        cache = Cache(settings.model_cache_dir, settings.model_cache_max_bytes)
        pull = Pull(uri, Deadline(settings.model_pull_seconds))
        result = {"directory": str(pull.download_to_cache(cache))}
    except ContractMismatch as mismatch:
        result = {"subject": mismatch.subject, "differences": mismatch.differences}
    except StoreError as error:
        result = {"error": str(error)}
    except BaseException as error:  # noqa: BLE001 - a panic of obstore is a BaseException
        result = {"error": f"{uri.uri}: {type(error).__name__}: {redact(str(error))}"}
    return json.dumps(result).encode()


def _directory(uri: ArtifactUri, result: dict[str, Any]) -> Path:
    """Return the directory from the child's result; raise the error that it reports."""
    if "differences" in result:
        raise ContractMismatch(result["subject"], result["differences"])
    if "directory" not in result:
        raise StoreError(result.get("error", f"{uri.uri}: the pull was killed. Too little memory?"))
    return Path(result["directory"])


def _watch(
    settings: ModelLoadSettings,
    inherited_lock: contextlib.ExitStack,
    current: SharedValue[ServedVersion],
) -> None:
    # Imported here, because the import would delay the start of the first download.
    from model_load.alias_watcher import AliasWatcher  # noqa: PLC0415

    watcher = AliasWatcher(settings, current)
    # The watcher has locked the version itself. The inherited lock would keep it in the cache
    # even when another version is served.
    inherited_lock.close()
    watcher.run()
