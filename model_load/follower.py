"""Follow an alias: pull and verify what it names, and only then let the workers serve it.

Runs in a process of its own, which server.py starts and starts again: whatever a download
or a model does to the process that tries it, the workers go on serving the last good one.
"""

import random
import re
import time
import traceback
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn

from msgspec.structs import replace

from model_load.alias import Alias, BucketAlias, LocalAlias
from model_load.cache import Cache
from model_load.source import ModelLoadSettings
from model_load.uri import ArtifactUri, is_bucket, local_path
from serving import logs
from serving.contract import MODEL_FILE, ContractMismatch
from serving.errors import StartupError
from serving.model import Model
from serving.shared import Shared
from serving.source import Current
from serving.verify import verify_files

# A pull that failed is tried again after one poll, then two, four, …
_LONGEST_PAUSE_SECONDS = 300.0
_JITTER = 0.1
# For the alias, which is read again at the next poll anyway.
_READ_SECONDS = 2.0
_LONGEST_REASON = 4096


class Follower:
    """One alias, and what came of following it so far: that is in `current`.

    It may be made where another one was killed: then it goes on from what that one left.
    """

    def __init__(self, settings: ModelLoadSettings, current: Shared[Current]) -> None:
        self._poll_seconds = settings.model_poll_seconds or 0
        self._current = current
        self._max_rows = settings.max_batch_rows
        self._alias = _alias(settings)
        self._uri = _parsed(settings)
        self._cache_dir = str(settings.model_cache_dir)
        self._holding = ExitStack()
        self._not_before = 0.0
        now = current.get()
        with suppress(StartupError):  # gone from the cache: the first poll pulls it again
            self._holding.enter_context(self._alias.hold(Path(now.directory)))
        if now.trying:
            self._refuse(now.trying, "the process that verified it was killed. Too little memory?")

    def run(self) -> NoReturn:
        """Look at the alias every MODEL_POLL_SECONDS, for as long as this process lives."""
        while True:
            # Not all replicas at once.
            time.sleep(self._poll_seconds * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311
            self.poll()

    def poll(self) -> None:
        """Look once; whatever goes wrong, leave the last good artifact current and say why."""
        version = None
        try:
            version = self._alias.version()
            self._note(polled_at=time.time())
            if self._is_served(version):
                self._agree()
            elif version != self._current.get().refused or time.monotonic() >= self._not_before:
                self._move(version)
        except ContractMismatch as mismatch:
            self._refuse(version, "; ".join(mismatch.differences))
        except StartupError as error:
            self._refuse(version, str(error))
        except BaseException as error:  # noqa: BLE001 - a panic of obstore is no Exception
            logs.error("poll_failed", traceback=traceback.format_exc())
            self._refuse(version, type(error).__name__)

    def _is_served(self, version: str) -> bool:
        now = self._current.get()
        return version == now.version and (Path(now.directory) / MODEL_FILE).is_file()

    def _move(self, version: str) -> None:
        """Pull, verify, and make a version the one that is current."""
        self._note(trying=version)
        directory = self._alias.artifact(version)
        with ExitStack() as holding:
            holding.enter_context(self._alias.hold(directory))
            Model.open(directory, verify_files(directory), max_rows=self._max_rows)
            self._holding.close()
            self._holding = holding.pop_all()
        moves = self._current.get().moves + 1
        self._note(version=version, directory=str(directory), trying=None, moves=moves)
        self._agree()

    def _agree(self) -> None:
        """Note that what the alias names is what is to be served."""
        now = self._current.get()
        if now.degraded:
            logs.info("alias_followed_again", version=now.version)
            self._note(degraded=None, refused=None, refusals=0)

    def _refuse(self, version: str | None, reason: str) -> None:
        """Keep what is served, and say why: once as an error.

        version: None where the alias itself could not be read.
        """
        now = self._current.get()
        refusals = 1 + (now.refusals if now.degraded and version == now.refused else 0)
        if refusals == 1:
            logs.error("model_refused", version=version, served=now.version, reason=reason)
        pause = min(_LONGEST_PAUSE_SECONDS, self._poll_seconds * 2 ** min(refusals - 1, 30))
        self._not_before = time.monotonic() + pause
        self._note(
            trying=None,
            degraded=self._fit_to_show(version, reason),
            refused=version,
            refusals=refusals,
            failures=now.failures + 1,
        )

    def _fit_to_show(self, version: str | None, reason: str) -> str:
        """Return a reason without the addresses and folders of this service: it is for all."""
        what = f"{self._uri.name}/{version}" if version else f"{self._uri.name}@{self._uri.alias}"
        for place, word in ((self._uri.store, "<store>"), (self._cache_dir, "<cache>")):
            reason = reason.replace(place, word)
        return re.sub(r"\w+://\S+", "<store>", f"{what}: {reason}")[:_LONGEST_REASON]

    def _note(self, **changed: Any) -> None:
        self._current.set(replace(self._current.get(), **changed))


def _alias(settings: ModelLoadSettings) -> Alias:
    uri = str(settings.model_uri)
    if not is_bucket(uri):
        return LocalAlias(uri)
    return BucketAlias(
        uri,
        Cache(settings.model_cache_dir, settings.model_cache_max_bytes),
        read_seconds=_READ_SECONDS,
        pull_seconds=settings.model_pull_seconds,
    )


def _parsed(settings: ModelLoadSettings) -> ArtifactUri:
    uri = str(settings.model_uri)
    return ArtifactUri.parse(uri if is_bucket(uri) else str(local_path(uri)))
