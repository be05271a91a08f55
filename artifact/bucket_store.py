"""Publish artifacts and aliases in a model store that is a bucket.

Buckets have no rename, so the contract is uploaded last: a version exists only once its contract
is uploaded. Model and contract are never overwritten; an alias is the only object that is.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore

from artifact.contract import ALIASES, CONTRACT_FILE, MODEL_FILE, Contract
from artifact.directory_store import stage
from artifact.errors import StoreError
from artifact.object_store import first_line, open_bucket
from artifact.uri import StoreUri

# Cache-Control of versions, which never change, and of aliases: for a CDN in front of the bucket.
_FOREVER = "public, max-age=31536000, immutable"
_REVALIDATE = "no-cache"
_RETRIES = 5


@dataclass(frozen=True)
class BucketStore:
    """A model store at `s3://`, `gs://` or `az://`, with its credentials in the environment.

    Raises StoreError for an invalid URI and for one with credentials, so that every message may
    contain the URI.
    """

    uri: str

    def __post_init__(self) -> None:
        """Check the URI."""
        try:
            StoreUri.parse(self.uri)
        except StoreError as error:
            raise StoreError(f"STORE: {error}") from None

    def reject_existing(self, name: str, version: str) -> None:
        """Raise StoreError if the store has this version, or cannot be reached."""
        if self._has(f"{name}/{version}/{CONTRACT_FILE}"):
            raise self._exists(name, version)

    def publish(self, contract: Contract, model: bytes) -> str:
        """Verify an artifact as a server does, upload model and contract, and return its URI.

        Raises StoreError if the version exists, if the files, the session or the golden rows
        differ from the contract, or if the store rejects an upload.
        """
        path = f"{contract.name}/{contract.version}"
        with tempfile.TemporaryDirectory() as directory:
            staged = stage(Path(directory), contract, model, f"{self.uri}/{path}")
            # The verified bytes, not a second encoding of the contract.
            text = (staged / CONTRACT_FILE).read_bytes()
        self.reject_existing(contract.name, contract.version)
        if not self._create(f"{path}/{MODEL_FILE}", model):
            raise StoreError(
                f"{self.uri}/{path}/{MODEL_FILE}: another model is there without a contract. "
                "Another training publishes it, or was killed: choose another VERSION."
            )
        if not self._create(f"{path}/{CONTRACT_FILE}", text):
            raise self._exists(contract.name, contract.version)
        return f"{self.uri}/{path}"

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias at a version. Raises StoreError if the store does not have the version."""
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
                attributes={"Cache-Control": _REVALIDATE},
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
        """Upload an object if its path is free; return whether it now has this content.

        A path that has the same bytes already is a success: a publisher that was killed uploaded
        it, or the response to the first attempt was lost and obstore sent the request again.
        """
        try:
            obstore.put(
                self._opened(),
                path,
                content,
                mode="create",
                attributes={"Cache-Control": _FOREVER},
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
