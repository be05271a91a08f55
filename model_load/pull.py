"""Download an artifact from a bucket into the cache: contract first, then the model.

The model is downloaded beside its final path and renamed once its sha256 is verified, so readers
of the cache see complete models only. Uses obstore, which hangs in the children of a process that
has used it: never import this module in a process that forks.
"""

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Self, TypeVar

import obstore
from obstore.exceptions import (
    BaseError,
    GenericError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import ObjectStore

from artifact.contract import (
    CONTRACT_FILE,
    MODEL_FILE,
    Contract,
    ModelFile,
    parse_contract,
)
from artifact.errors import StoreError
from artifact.object_store import READ_SECONDS, first_line, open_bucket
from artifact.uri import ArtifactUri
from model_load.cache import Cache, Entry
from serving import logs

# 64 KiB. If a response breaks off, obstore drops the bytes that do not fill a chunk yet, so a
# larger chunk would be downloaded again.
_CHUNK_BYTES = 1 << 16
# The text of obstore's error if a server answers a Range request with the whole object.
_NO_RANGE = "non-partial response"
# 256 MiB. A contract is read into memory.
_MAX_CONTRACT_BYTES = 1 << 28
_MIN_BACKOFF_SECONDS = 0.2
_MAX_BACKOFF_SECONDS = 10.0
_PROGRESS_SECONDS = 5.0

Result = TypeVar("Result")


class PullError(StoreError):
    """An artifact cannot be downloaded: names the URI, the cause, and what to check."""


@dataclass
class Deadline:
    """When a pull gives up, and how long it waits before each retry."""

    # For the whole pull, retries included.
    total_seconds: float
    # Without any byte from the server.
    read_seconds: float = READ_SECONDS
    _started: float = field(default_factory=time.monotonic, init=False)

    def left(self) -> float:
        """Return the remaining seconds, at least 0."""
        return max(0.0, self._started + self.total_seconds - time.monotonic())

    def backoff(self, failures: int) -> bool:
        """Sleep before the next attempt; return False, at once, if the deadline comes first.

        The pause doubles with each failure. It is random, so that the replicas of a deployment do
        not retry at the same moment.
        """
        longest = min(_MAX_BACKOFF_SECONDS, _MIN_BACKOFF_SECONDS * 2**failures)
        seconds = random.uniform(longest / 2, longest)  # noqa: S311 - jitter, not a secret
        if seconds >= self.left():
            return False
        time.sleep(seconds)
        return True


class Pull:
    """One pull of one artifact; `store` is its bucket, if that is open already."""

    def __init__(
        self, uri: ArtifactUri, deadline: Deadline, store: ObjectStore | None = None
    ) -> None:
        self._uri = uri
        self._deadline = deadline
        try:
            self._store = store or open_bucket(uri.address, read_seconds=deadline.read_seconds)
        except StoreError as error:
            raise PullError(f"MODEL_URI: {uri.uri}: {error}") from None

    def version(self) -> str:
        """Return the version that the URI names; reads the alias if it has one."""
        if self._uri.alias is None:
            return self._uri.version
        text = self._read(self._uri.alias_path).decode(errors="replace").strip()
        return self._uri.check_version(text)

    def contract(self, version: str) -> tuple[Contract, bytes]:
        """Return the contract of a version, and its bytes.

        Raises ContractMismatch if it is invalid, and StoreError if it belongs to another artifact
        than the URI names.
        """
        path = f"{self._uri.name}/{version}/{CONTRACT_FILE}"
        content = self._read(path)
        subject = f"{self._uri.store}/{self._uri.name}/{version}"
        contract = parse_contract(content.decode(errors="replace"), subject)
        replace(self._uri, version=version).check_contract(contract)
        return contract, content

    def with_timeout(self, seconds: float) -> Self:
        """Return a new pull of the same artifact, with a new deadline and the same connections."""
        return type(self)(self._uri, replace(self._deadline, total_seconds=seconds), self._store)

    def download_to_cache(self, cache: Cache, version: str | None = None) -> Path:
        """Return the directory of the artifact in the cache; download it if it is missing.

        version: by default the one that the URI names. Raises PullError or StoreError, and
        ContractMismatch if the contract is invalid.
        """
        contract, content = self.contract(version or self.version())
        with cache.locked_entry(contract.model.sha256, self._deadline.left()) as entry:
            if not entry.is_valid(contract.model):
                cache.evict_until_fits(entry, contract.model.size_bytes)
                self._fetch(contract, entry)
            return entry.artifact(content)

    def _fetch(self, contract: Contract, entry: Entry) -> None:
        """Download a model and verify its sha256; download it once more on a mismatch."""
        path = f"{contract.name}/{contract.version}/{MODEL_FILE}"
        # Twice, because a proxy may have an old copy of an object that was replaced by hand.
        for attempt in (1, 2):
            actual = self._download(path, contract.model, entry.partial)
            if actual == contract.model.sha256:
                entry.commit()
                return
            entry.partial.unlink()
            logs.info("model_corrupt", attempt=attempt, expected=contract.model.sha256, got=actual)
        raise PullError(
            f"{self._uri.store}/{path}: sha256 expected {contract.model.sha256}, got {actual}, "
            "twice. Publish the model again, as another version."
        )

    def _download(self, path: str, model: ModelFile, partial: Path) -> str:
        """Download an object to a file, resuming after interruptions; return the file's sha256."""
        with partial.open("wb") as file:
            download = _Download(self._store, path, file, model.size_bytes, self._deadline)
            self._retry(path, download.resume)
        logs.info("model_pulled", bytes=download.received, seconds=round(download.seconds(), 3))
        return download.sha256.hexdigest()

    def _read(self, path: str) -> bytes:
        def read() -> bytes:
            response = obstore.get(self._store, path)
            if response.meta["size"] > _MAX_CONTRACT_BYTES:
                raise PullError(
                    f"{self._uri.store}/{path}: expected at most {_MAX_CONTRACT_BYTES} bytes, "
                    f"got {response.meta['size']}"
                )
            return bytes(response.bytes())

        return self._retry(path, read)

    def _retry(self, path: str, request: Callable[[], Result]) -> Result:
        """Return the result of a request; repeat it after network and server errors.

        Raises PullError after the deadline, and at once for errors that a retry does not change.
        """
        where = f"{self._uri.store}/{path}"
        failures = 0
        while True:
            try:
                return request()
            except FileNotFoundError:
                raise PullError(
                    f"{where}: not found. Check MODEL_URI, and that this version was published."
                ) from None
            except (PermissionDeniedError, UnauthenticatedError) as error:
                raise PullError(
                    f"{where}: {_reason(error)}. Check the credentials of this process and that "
                    "they may read there."
                ) from None
            except GenericError as error:
                failures += 1
                logs.info("pull_retried", uri=where, failures=failures, reason=_reason(error))
                if not self._deadline.backoff(failures):
                    raise PullError(
                        f"{where}: gave up after {self._deadline.total_seconds:g} s and {failures} "
                        f"attempts: {_reason(error)}. Check that this process can reach the store."
                    ) from None
            except BaseError as error:
                raise PullError(f"{where}: {_reason(error)}") from None


class _Download:
    """The download of one object into a file, over as many requests as it takes."""

    def __init__(
        self, store: ObjectStore, path: str, file: IO[bytes], size_bytes: int, deadline: Deadline
    ) -> None:
        self._store = store
        self._deadline = deadline
        self._path = path
        self._file = file
        self._size_bytes = size_bytes
        self._e_tag: str | None = None
        self._started = self._reported = time.monotonic()
        # All bytes from the network, those that were discarded and downloaded again included.
        self.received = 0
        self.sha256 = hashlib.sha256()

    def seconds(self) -> float:
        """Return the duration so far."""
        return time.monotonic() - self._started

    def resume(self) -> None:
        """Append the missing bytes. If obstore raises an error, the received bytes are kept."""
        for chunk in self._chunks():
            self._file.write(chunk)
            self.sha256.update(chunk)
            self.received += len(chunk)
            if self._file.tell() > self._size_bytes:
                raise PullError(
                    f"{self._path}: expected {self._size_bytes} bytes, got more. Publish the model "
                    "again, as another version."
                )
            # The read timeout does not end a connection that delivers a byte now and then.
            if not self._deadline.left():
                raise PullError(
                    f"{self._path}: gave up after {self._deadline.total_seconds:g} s with "
                    f"{self._file.tell()} of {self._size_bytes} bytes. Check MODEL_PULL_SECONDS."
                )
            self._log_progress()
        self._file.flush()

    def _chunks(self) -> Iterator[bytes]:
        offset = self._file.tell()
        if offset == self._size_bytes:
            return
        response = self._get_rest(offset, self._e_tag) if offset and self._e_tag else None
        if response is None:
            self._file.seek(0)
            self._file.truncate()
            self.sha256 = hashlib.sha256()
            response = obstore.get(self._store, self._path)
            self._e_tag = response.meta["e_tag"]
        yield from map(bytes, response.stream(min_chunk_size=_CHUNK_BYTES))

    def _get_rest(self, offset: int, e_tag: str) -> "obstore.GetResult | None":
        """Request the object from an offset on.

        Returns None if the object has changed or the server does not support Range: the download
        then has to start again.
        """
        try:
            response = obstore.get(
                self._store, self._path, options={"range": {"offset": offset}, "if_match": e_tag}
            )
        except GenericError as error:
            if _NO_RANGE in str(error):
                return None
            raise
        except (PreconditionError, NotSupportedError):
            return None
        # Many servers ignore If-Match, so compare the ETag as well.
        matches = response.meta["e_tag"] == e_tag and response.range[0] == offset
        return response if matches else None

    def _log_progress(self) -> None:
        now = time.monotonic()
        if now - self._reported < _PROGRESS_SECONDS:
            return
        self._reported = now
        logs.info(
            "model_pulling",
            bytes=self._file.tell(),
            of_bytes=self._size_bytes,
            bytes_per_second=int(self.received / self.seconds()),
        )


def _reason(error: BaseException) -> str:
    return first_line(error).rstrip(". ")
