"""Where the model is in load mode: in a model store, named by MODEL_URI.

Used by __main__.py; from the directory on, both modes are the same server.
"""

import contextlib
import ctypes
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

from pydantic import Field, model_validator

from model_load.cache import Cache, hold
from model_load.uri import ArtifactUri, is_bucket, local_path
from serving.contract import ContractMismatch, read_contract
from serving.errors import StartupError
from serving.settings import Mode, Settings

_PR_SET_PDEATHSIG = 1


class ModelLoadSettings(Settings):
    """The server's settings, and the artifact to pull."""

    mode: ClassVar[Mode] = "model_load"

    model_uri: str | None = Field(
        None,
        description="artifact to serve: `<store>/iris/1`, or the alias `<store>/iris@stable`; a "
        "store is a path, `file://`, `s3://`, `gs://`, `az://`, `https://` or `http://`",
    )
    model_dir: Path | None = Field(
        None, description="directory that holds model.onnx and contract.json"
    )
    model_cache_dir: Path = Field(
        Path("/tmp/models"),  # noqa: S108 - named by sha256, and verified at each start
        description="where pulled models are kept by sha256, for the next start on this node",
    )
    model_cache_max_bytes: int | None = Field(
        None, ge=1, description="most that the cache may hold; the longest unused goes first"
    )
    model_pull_seconds: float = Field(
        600, gt=0, description="time that a pull may take, its retries included"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.model_uri) == bool(self.model_dir):
            which = "both are" if self.model_uri else "neither is"
            raise ValueError(f"MODEL_URI or MODEL_DIR: expected one of them to be set, {which}")
        return self


def find(settings: ModelLoadSettings) -> Callable[[], Path]:
    """Begin to get the artifact; return what waits for it and returns its directory.

    A local one is opened in place. One in a bucket is pulled by a child while this process
    goes on: obstore hangs in the workers forked later from a process that has used it.
    Raises StartupError, at once or from the wait, that names the URI and what to check.
    """
    if settings.model_dir is not None:
        directory = settings.model_dir
        return lambda: directory
    uri = str(settings.model_uri)
    if not is_bucket(uri):
        path = local_artifact(uri)
        return lambda: path
    return _pull_in_a_child(ArtifactUri.parse(uri), settings)


def local_artifact(uri: str) -> Path:
    """Return the directory that a path or a `file://` URI names, through its alias if it has one.

    Raises StartupError that names the URI and what was expected of it.
    """
    path = local_path(uri)
    if "@" in path.name:
        path = _of_the_alias(uri, ArtifactUri.parse(str(path)))
    with contextlib.suppress(ContractMismatch):  # said later, with all that is wrong
        ArtifactUri(uri, "", path.absolute().parent.name, path.name, None).refuse_another(
            read_contract(path)
        )
    return path


def _of_the_alias(uri: str, artifact: ArtifactUri) -> Path:
    """Return the directory of the version that an alias of a local store names now."""
    alias_file = Path(artifact.store) / artifact.alias_path
    try:
        text = alias_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise StartupError(f"MODEL_URI: {uri}: no such alias: {alias_file}: {reason}") from None
    return Path(artifact.store) / artifact.name / artifact.checked_version(text)


def _pull_in_a_child(uri: ArtifactUri, settings: ModelLoadSettings) -> Callable[[], Path]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _pull_and_end(uri, settings, writing)
    os.close(writing)

    def wait() -> Path:
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        return _result(uri, json.loads(said) if said else {})

    return wait


def _pull_and_end(uri: ArtifactUri, settings: ModelLoadSettings, writing: int) -> NoReturn:
    """Pull, tell the parent through a pipe what came of it, and end, whatever happens."""
    _end_with_the_parent()
    said: dict[str, Any] = {}
    try:
        from model_load.pull import Deadline, Pull  # noqa: PLC0415 - never in the parent

        cache = Cache(settings.model_cache_dir, settings.model_cache_max_bytes)
        pull = Pull(uri, Deadline(settings.model_pull_seconds))
        said = {"directory": str(pull.into(cache))}
    except ContractMismatch as mismatch:
        said = {"subject": mismatch.subject, "differences": mismatch.differences}
    except StartupError as error:
        said = {"error": str(error)}
    except BaseException as error:  # noqa: BLE001 - a panic of obstore is no Exception
        said = {"error": f"{uri.uri}: {type(error).__name__}: {error}"}
    finally:
        os.write(writing, json.dumps(said).encode())
        os._exit(0)


def _end_with_the_parent() -> None:
    """Let the kernel end this child when its parent ends, however that is ended (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _result(uri: ArtifactUri, said: dict[str, Any]) -> Path:
    """Return what the child pulled, held against removal; raises what it raised."""
    if "differences" in said:
        raise ContractMismatch(said["subject"], said["differences"])
    if "directory" not in said:
        raise StartupError(said.get("error", f"{uri.uri}: the pull was killed. Too little memory?"))
    directory = Path(said["directory"])
    hold(directory)
    return directory
