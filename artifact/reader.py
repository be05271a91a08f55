"""What a model store holds, for tools that compare it with images and servers."""

from pathlib import Path

import obstore
from obstore.exceptions import BaseError

from artifact.contract import ALIASES, CONTRACT_FILE
from artifact.errors import StoreError
from artifact.object_store import first_line, open_bucket
from artifact.redact import redact


def versions_in(store: Path) -> list[Path]:
    """Return the directory of every version in a local store: what has no contract is none."""
    found = (path.parent for path in store.glob(f"*/*/{CONTRACT_FILE}"))
    return [
        version
        for version in found
        if version.name != ALIASES
        and not any(part.startswith(".") for part in version.relative_to(store).parts)
    ]


def contract_in(store: str, name: str, version: str) -> bytes | None:
    """Return a version's contract.json; None where the store does not have it.

    store: a directory or a bucket's URI. Raises StoreError, and StoreError for a URI that
    can mean no store.
    """
    path = f"{name}/{version}/{CONTRACT_FILE}"
    try:
        if "://" in store:
            return bytes(obstore.get(open_bucket(store), path).bytes())
        return (Path(store) / path).read_bytes()
    except FileNotFoundError:
        return None
    except (BaseError, OSError) as error:
        raise StoreError(f"STORE: {redact(store)}: {first_line(error)}") from None
