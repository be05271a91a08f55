"""Get an artifact from a bucket: contract first, then the model, verified on the way.

Called by source.py in a process of its own, and by command.py. A model
is downloaded into the cache beside its final place and renamed there once its sha256 is
right, so what can be seen is whole.
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

# Small, for what is still below it when a body breaks is lost.
_CHUNK_BYTES = 1 << 16
# What obstore says when a whole object is the answer to a Range.
_NO_RANGE = "non-partial response"
_LARGEST_CONTRACT_BYTES = 1 << 28
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0
_PROGRESS_SECONDS = 5.0

Result = TypeVar("Result")


class PullError(StoreError):
    """An artifact that cannot be had: names the URI, the cause, and what to check."""


@dataclass
class Deadline:
    """When a pull gives up, and how long it waits before each new try.

    total_seconds: of the whole pull, retries included. read_seconds: of silence.
    """

    total_seconds: float
    read_seconds: float = READ_SECONDS
    _started: float = field(default_factory=time.monotonic, init=False)

    def left(self) -> float:
        """Return the seconds that are left, 0 when there are none."""
        return max(0.0, self._started + self.total_seconds - time.monotonic())

    def pause(self, failures: int) -> bool:
        """Wait before another try, longer each time and never as others do; False when late."""
        longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**failures)
        seconds = random.uniform(longest / 2, longest)  # noqa: S311 - jitter, no secret
        if seconds >= self.left():
            return False
        time.sleep(seconds)
        return True


class Pull:
    """One pull of one artifact.

    store: where it is, if that is open already.
    """

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
        """Return the version that the URI names, through its alias if it has one."""
        if self._uri.alias is None:
            return self._uri.version
        text = self._read(self._uri.alias_path).decode(errors="replace").strip()
        return self._uri.check_version(text)

    def contract(self, version: str) -> tuple[Contract, bytes]:
        """Return the contract of a version, and its bytes.

        Raises ContractMismatch as parse_contract does, and StoreError when it is that of
        another artifact than the URI says.
        """
        path = f"{self._uri.name}/{version}/{CONTRACT_FILE}"
        content = self._read(path)
        subject = f"{self._uri.store}/{self._uri.name}/{version}"
        contract = parse_contract(content.decode(errors="replace"), subject)
        replace(self._uri, version=version).check_contract(contract)
        return contract, content

    def within(self, seconds: float) -> Self:
        """Return another pull of the same artifact, over the same connections."""
        return type(self)(self._uri, replace(self._deadline, total_seconds=seconds), self._store)

    def into(self, cache: Cache, version: str | None = None) -> Path:
        """Return the directory of the artifact in the cache, downloaded unless it is there.

        version: of those that the URI's alias may name; by default what it names now.
        Raises PullError or StoreError, and ContractMismatch for what is no contract.
        """
        contract, content = self.contract(version or self.version())
        with cache.alone_with(contract.model.sha256, self._deadline.left()) as entry:
            if not entry.is_right(contract.model):
                cache.make_room(entry, contract.model.size_bytes)
                self._fetch(contract, entry)
            return entry.artifact(content)

    def _fetch(self, contract: Contract, entry: Entry) -> None:
        """Download a model; once more when its sha256 is wrong: a proxy may hold an old copy."""
        path = f"{contract.name}/{contract.version}/{MODEL_FILE}"
        for attempt in (1, 2):
            came = self._download(path, contract.model, entry.partial)
            if came == contract.model.sha256:
                entry.keep()
                return
            entry.partial.unlink()
            logs.info("model_corrupt", attempt=attempt, expected=contract.model.sha256, got=came)
        raise PullError(
            f"{self._uri.store}/{path}: sha256 expected {contract.model.sha256}, got {came}, "
            "twice. Publish the model again, as another version."
        )

    def _download(self, path: str, model: ModelFile, partial: Path) -> str:
        """Stream an object to a file, going on where a body broke; return the file's sha256."""
        with partial.open("wb") as file:
            download = _Download(self._store, path, file, model.size_bytes, self._deadline)
            self._retried(path, download.go_on)
        logs.info("model_pulled", bytes=download.received, seconds=round(download.seconds(), 3))
        return download.sha256.hexdigest()

    def _read(self, path: str) -> bytes:
        def read() -> bytes:
            found = obstore.get(self._store, path)
            if found.meta["size"] > _LARGEST_CONTRACT_BYTES:
                raise PullError(
                    f"{self._uri.store}/{path}: expected at most {_LARGEST_CONTRACT_BYTES} bytes, "
                    f"got {found.meta['size']}"
                )
            return bytes(found.bytes())

        return self._retried(path, read)

    def _retried(self, path: str, ask: Callable[[], Result]) -> Result:
        """Ask again what is worth it, until the time is over; the rest is an error at once."""
        where = f"{self._uri.store}/{path}"
        failures = 0
        while True:
            try:
                return ask()
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
                if not self._deadline.pause(failures):
                    raise PullError(
                        f"{where}: gave up after {self._deadline.total_seconds:g} s and {failures} "
                        f"tries: {_reason(error)}. Check that the store can be reached from here."
                    ) from None
            except BaseError as error:
                raise PullError(f"{where}: {_reason(error)}") from None


class _Download:
    """A file that grows until it is as long as its object, over as many requests as it takes."""

    def __init__(
        self, store: ObjectStore, path: str, file: IO[bytes], size_bytes: int, deadline: Deadline
    ) -> None:
        self._store = store
        self._deadline = deadline
        self._path = path
        self._file = file
        self._size_bytes = size_bytes
        self._e_tag: str | None = None
        self._started = self._shown = time.monotonic()
        self.received = 0
        self.sha256 = hashlib.sha256()

    def seconds(self) -> float:
        """Return how long it has taken so far."""
        return time.monotonic() - self._started

    def go_on(self) -> None:
        """Append what is missing. Raises what obstore raises; then what came is kept."""
        for piece in self._pieces():
            self._file.write(piece)
            self.sha256.update(piece)
            self.received += len(piece)
            if self._file.tell() > self._size_bytes:
                raise PullError(
                    f"{self._path}: expected {self._size_bytes} bytes, got more. Publish the model "
                    "again, as another version."
                )
            if not self._deadline.left():
                raise PullError(
                    f"{self._path}: gave up after {self._deadline.total_seconds:g} s with "
                    f"{self._file.tell()} of {self._size_bytes} bytes. Check MODEL_PULL_SECONDS."
                )
            self._show_progress()
        self._file.flush()

    def _pieces(self) -> Iterator[bytes]:
        offset = self._file.tell()
        if offset == self._size_bytes:
            return
        found = self._rest(offset, self._e_tag) if offset and self._e_tag else None
        if found is None:
            self._file.seek(0)
            self._file.truncate()
            self.sha256 = hashlib.sha256()
            found = obstore.get(self._store, self._path)
            self._e_tag = found.meta["e_tag"]
        yield from map(bytes, found.stream(min_chunk_size=_CHUNK_BYTES))

    def _rest(self, offset: int, e_tag: str) -> "obstore.GetResult | None":
        """Return the object from an offset on; None when it has changed, or cannot be cut."""
        try:
            found = obstore.get(
                self._store, self._path, options={"range": {"offset": offset}, "if_match": e_tag}
            )
        except GenericError as error:
            if _NO_RANGE in str(error):
                return None
            raise
        except (PreconditionError, NotSupportedError):
            return None
        # Many servers know no If-Match.
        return found if found.meta["e_tag"] == e_tag and found.range[0] == offset else None

    def _show_progress(self) -> None:
        now = time.monotonic()
        if now - self._shown < _PROGRESS_SECONDS:
            return
        self._shown = now
        done = self._file.tell()
        logs.info(
            "model_pulling",
            bytes=done,
            of_bytes=self._size_bytes,
            bytes_per_second=int(self.received / self.seconds()),
        )


def _reason(error: BaseException) -> str:
    return first_line(error).rstrip(". ")
