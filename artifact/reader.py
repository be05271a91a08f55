"""Read the versions and contracts of a model store."""

from pathlib import Path

import obstore
from obstore.exceptions import BaseError

from artifact.contract import ALIASES, CONTRACT_FILE
from artifact.errors import StoreError
from artifact.object_store import first_line, open_bucket
from artifact.redact import redact
from artifact.uri import is_bucket, local_path


def versions_in(store: Path) -> list[Path]:
    """Return the directory of every version in a local store; a version has a contract."""
    directories = (path.parent for path in store.glob(f"*/*/{CONTRACT_FILE}"))
    return [
        version
        for version in directories
        if version.name != ALIASES
        # Hidden directories belong to publications that have not finished.
        and not any(part.startswith(".") for part in version.relative_to(store).parts)
    ]


def contract_in(store: str, name: str, version: str) -> bytes | None:
    """Return the bytes of a version's contract.json, or None if the store does not have it.

    store: STORE, as a path, file:// or a bucket's URI. Raises StoreError if it is invalid or
    cannot be read.
    """
    path = f"{name}/{version}/{CONTRACT_FILE}"
    if not is_bucket(store):
        return _read_file(local_path(store, "STORE") / path, store)
    try:
        return bytes(obstore.get(open_bucket(store), path).bytes())
    except FileNotFoundError:
        return None
    except StoreError as error:
        raise StoreError(f"STORE: {error}") from None
    except BaseError as error:
        raise StoreError(f"STORE: {redact(store)}: {first_line(error)}") from None


def _read_file(path: Path, store: str) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"STORE: {redact(store)}: {error}") from None
