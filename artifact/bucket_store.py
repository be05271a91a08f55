"""The model store in a bucket: where an artifact becomes a version by its contract, put last.

Called as store.py is, for stores that are no directory. A version without a contract is
not there yet; nothing that is there is written again, but for an alias.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore

from artifact.contract import ALIASES, CONTRACT_FILE, MODEL_FILE, Contract
from artifact.directory_store import refuse_differences, write
from artifact.errors import StoreError
from artifact.object_store import first_line, open_bucket
from artifact.uri import StoreUri

# For the caches between a bucket and its readers: a version is for ever, an alias is not.
_FOR_EVER = "public, max-age=31536000, immutable"
_NEVER = "no-cache"
_RETRIES = 5


@dataclass(frozen=True)
class Bucket:
    """A store at `s3://`, `gs://` or `az://`, with its credentials in the environment.

    Raises StoreError for a URI with credentials.
    """

    uri: str

    def __post_init__(self) -> None:
        """Refuse a URI with credentials, so that every message may name the URI."""
        try:
            StoreUri.parse(self.uri)
        except StoreError as error:
            raise StoreError(f"STORE: {error}") from None

    def refuse_existing(self, name: str, version: str) -> None:
        """Raise StoreError when the store has this version, or cannot be asked."""
        if self._has(f"{name}/{version}/{CONTRACT_FILE}"):
            raise self._exists(name, version)

    def publish(self, contract: Contract, model: bytes) -> str:
        """Put the model, then the contract, which makes it a version; return its URI.

        Checked as a server does before anything is put. Raises StoreError when it is
        not right, when the version exists, and when the store refuses.
        """
        path = f"{contract.name}/{contract.version}"
        text = contract.to_json().encode()
        with tempfile.TemporaryDirectory() as directory:
            staged = Path(directory) / contract.name / contract.version
            staged.mkdir(parents=True)
            write(staged / MODEL_FILE, model)
            write(staged / CONTRACT_FILE, text)
            refuse_differences(staged, f"{self.uri}/{path}")
        self.refuse_existing(contract.name, contract.version)
        if not self._create(f"{path}/{MODEL_FILE}", model):
            raise StoreError(
                f"{self.uri}/{path}/{MODEL_FILE}: another model is there without a contract. "
                "Another training publishes it, or was killed: choose another VERSION."
            )
        if not self._create(f"{path}/{CONTRACT_FILE}", text):
            raise self._exists(contract.name, contract.version)
        return f"{self.uri}/{path}"

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias at a version. Raises StoreError when the store does not have it."""
        if not self._has(f"{name}/{version}/{CONTRACT_FILE}"):
            raise StoreError(
                f"{self.uri}/{name}/{version}: expected a version for {alias}, got none"
            )
        path = f"{name}/{ALIASES}/{alias}"
        try:
            obstore.put(
                self._opened(),
                path,
                f"{version}\n".encode(),
                attributes={"Cache-Control": _NEVER},
            )
        except BaseError as error:
            raise self._failed(path, error) from error

    def _opened(self) -> ObjectStore:
        return open_bucket(self.uri, max_retries=_RETRIES)

    def _has(self, path: str) -> bool:
        try:
            obstore.head(self._opened(), path)
        except FileNotFoundError:
            return False
        except (BaseError, StoreError) as error:
            raise self._failed(path, error) from error
        return True

    def _create(self, path: str, content: bytes) -> bool:
        """Put an object that is not there, in one step; return whether it is this one now.

        The same bytes may be there already: from a publication that was killed, or from a
        first try whose answer was lost.
        """
        try:
            obstore.put(
                self._opened(),
                path,
                content,
                mode="create",
                attributes={"Cache-Control": _FOR_EVER},
            )
        except AlreadyExistsError:
            return bytes(obstore.get(self._opened(), path).bytes()) == content
        except (BaseError, FileNotFoundError, NotImplementedError) as error:
            raise self._failed(path, error) from error
        return True

    def _exists(self, name: str, version: str) -> StoreError:
        return StoreError(
            f"{self.uri}/{name}/{version}: this version exists, and versions never change. "
            "Choose another VERSION."
        )

    def _failed(self, path: str, error: BaseException) -> StoreError:
        return StoreError(
            f"STORE: {self.uri}/{path}: {first_line(error)}. Check the URI, and that the "
            "credentials in the environment may write there."
        )
