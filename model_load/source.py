"""Where the model is in load mode: in a model store, named by MODEL_URI.

Used by __main__.py; from the directory on, both modes are the same server.
"""

import contextlib
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from pydantic import Field, TypeAdapter, ValidationError

from serving.contract import Alias, ContractMismatch, Version, read_contract
from serving.errors import StartupError
from serving.settings import Mode, Settings


class ModelLoadSettings(Settings):
    """The server's settings, and the artifact to pull."""

    mode: ClassVar[Mode] = "model_load"

    model_uri: str = Field(
        min_length=1,
        description="artifact to serve: `<store>/iris/1`, or the alias `<store>/iris@stable`; "
        "a path or `file://`",
    )


def locate(settings: ModelLoadSettings) -> Path:
    """Return the directory of the artifact that MODEL_URI names; a local one is not copied.

    Raises StartupError that names the URI and what was expected of it.
    """
    uri = settings.model_uri
    path = _local_path(uri)
    name, at, alias = path.name.partition("@")
    if at:
        name_dir = path.parent / name
        path = name_dir / _version_of(uri, name_dir / "aliases" / _checked(Alias, alias, uri))
    _refuse_a_copy_under_another_name(uri, path)
    return path


def _refuse_a_copy_under_another_name(uri: str, path: Path) -> None:
    """Raise StartupError when the artifact says that it is another one than the URI does."""
    with contextlib.suppress(ContractMismatch):  # said later, with all that is wrong
        contract = read_contract(path)
        asked, came = (path.absolute().parent.name, path.name), (contract.name, contract.version)
        if asked != came:
            raise StartupError(
                f"MODEL_URI: {uri}: expected the artifact {'/'.join(asked)}, got {'/'.join(came)}"
            )


def _local_path(uri: str) -> Path:
    if "://" not in uri:
        return Path(uri)
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path:
        raise StartupError(f"MODEL_URI: expected a path or file:///path, got {uri}")
    return Path(unquote(parts.path))


def _version_of(uri: str, alias_file: Path) -> str:
    """Return the version that an alias names now."""
    try:
        version = alias_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise StartupError(f"MODEL_URI: {uri}: no such alias: {alias_file}: {reason}") from None
    return _checked(Version, version, uri)


def _checked(kind: Any, text: str, uri: str) -> str:
    """Return a version or alias that cannot lead out of the store."""
    try:
        checked: str = TypeAdapter(kind).validate_python(text)
    except ValidationError:
        expected = "letters, digits, '.', '_' and '-'"
        raise StartupError(f"MODEL_URI: {uri}: expected {expected}, got {text!r}") from None
    return checked
