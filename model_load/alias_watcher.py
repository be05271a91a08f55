"""Follow an alias: pull and verify what it names, and only then let the workers serve it.

Runs in a process of its own, which server.py starts and starts again: whatever a download
or a model does to the process that tries it, the workers go on serving the last good one.
"""

import os
import random
import re
import threading
import time
import traceback
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn

from msgspec.structs import replace

from artifact.contract import MODEL_FILE, ContractMismatch
from artifact.errors import StoreError
from artifact.redact import redact
from artifact.uri import is_bucket
from artifact.verify import verify_files
from model_load.alias import Alias, BucketAlias, LocalAlias
from model_load.cache import Cache
from model_load.settings import ModelLoadSettings
from serving import logs
from serving.inference.model import Model
from serving.workers.model_source import ServedVersion
from serving.workers.shared_value import SharedValue

_LONGEST_PAUSE_SECONDS = 300.0
_JITTER = 0.1
# For the alias, which is read again at the next poll anyway.
_READ_SECONDS = 5.0
_LONGEST_REASON = 4096
_NOT_REJECTED: dict[str, Any] = {"rejected": None, "rejection_reason": None, "rejections": 0}
_COUNTED = ("reloads", "reload_seconds", "reload_failures")
# The first to go when memory is short.
_OOM_SCORE = "1000"


class Follower:
    """One alias, and what came of following it so far: that is in `current`.

    The alias is looked at on one thread and what it names is tried on another. This process
    may be killed, or ends by itself when a try must end; the next one goes on from there.
    """

    def __init__(self, settings: ModelLoadSettings, current: SharedValue[ServedVersion]) -> None:
        self._settings = settings
        self._poll_seconds = settings.model_poll_seconds or 0
        self._current = current
        self._noting = threading.Lock()
        self._alias = _alias(settings)
        self._holding = ExitStack()
        self._trying: threading.Thread | None = None
        self._verify_until = float("inf")
        self._not_before = 0.0
        now = current.get()
        with suppress(StoreError):  # gone from the cache: the first poll pulls it again
            self._holding.enter_context(self._alias.hold(Path(now.directory)))
        if now.candidate:
            self._refuse(
                now.candidate, "the process that verified it was killed. Too little memory?"
            )

    def run(self) -> NoReturn:
        """Look at the alias every MODEL_POLL_SECONDS, for as long as this process lives."""
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
        while True:
            # Not all replicas at once.
            time.sleep(self._poll_seconds * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311
            self.poll()

    def poll(self) -> None:
        """Look once, and let what is named be tried; nothing else is tried for long."""
        version = self._read()
        if self._trying and self._trying.is_alive():
            self._watch(version)
        elif version is not None and self._is_served(version):
            self._note(**_NOT_REJECTED)
        elif version is not None and self._is_due(version):
            self._verify_until = float("inf")
            self._trying = threading.Thread(target=self._try, args=(version,), name=version)
            self._trying.start()

    def _read(self) -> str | None:
        """Return the version that the alias names; None, and say why, where it cannot be read."""
        now = self._current.get()
        try:
            version = self._alias.version()
        except BaseException as error:  # noqa: BLE001 - a panic of obstore is no Exception
            reason = _reason(error)
            if now.alias_error is None:
                logs.error("alias_not_read", served=now.version, reason=reason)
            named = f"{self._alias.uri.name}@{self._alias.uri.alias}"
            self._note(alias_error=self._fit_to_show(f"{named}: {reason}"), reload_failures=1)
            return None
        self._note(alias_error=None, polled_at=time.time())
        return version

    def _is_served(self, version: str) -> bool:
        now = self._current.get()
        return version == now.version and (Path(now.directory) / MODEL_FILE).is_file()

    def _is_due(self, version: str) -> bool:
        return version != self._current.get().rejected or time.monotonic() >= self._not_before

    def _watch(self, version: str | None) -> None:
        """End the try under way, and this process with it, when it is late or not wanted now."""
        tried = str(self._current.get().candidate)
        if version not in (None, tried):
            logs.info("try_abandoned", version=tried, wanted=version)
            self._note(candidate=None)
            os._exit(0)
        if time.monotonic() > self._verify_until:
            seconds = self._settings.model_pull_seconds
            self._refuse(tried, f"its golden rows took longer than {seconds:g} s")
            os._exit(0)

    def _try(self, version: str) -> None:
        """Make a version the one that is current; whatever goes wrong, leave the last good one."""
        if version != self._current.get().rejected:
            self._note(**_NOT_REJECTED)
        self._note(candidate=version)
        try:
            self._move(version)
        except BaseException as error:  # noqa: BLE001 - a panic of obstore is no Exception
            self._refuse(version, _reason(error))

    def _move(self, version: str) -> None:
        began = time.monotonic()
        directory = self._alias.artifact(version)
        with ExitStack() as holding:
            holding.enter_context(self._alias.hold(directory))
            self._verify_until = time.monotonic() + self._settings.model_pull_seconds
            contract = verify_files(directory)
            Model.open(directory, contract, max_rows=self._settings.max_batch_rows)
            if self._alias.version() != version:
                self._note(candidate=None)  # moved on meanwhile: never serve what was withdrawn
                return
            self._holding.close()
            self._holding = holding.pop_all()
        self._note(
            version=version,
            directory=str(directory),
            candidate=None,
            reloads=1,
            reload_seconds=time.monotonic() - began,
            **_NOT_REJECTED,
        )

    def _refuse(self, version: str, reason: str) -> None:
        """Keep what is served and say why: as an error once a reason, and later try again."""
        now = self._current.get()
        shown = self._fit_to_show(f"{self._alias.uri.name}/{version}: {reason}")
        if version != now.rejected or _without_numbers(shown) != _without_numbers(
            now.rejection_reason or ""
        ):
            logs.error("model_refused", version=version, served=now.version, reason=reason)
        rejections = now.rejections + 1 if version == now.rejected else 1
        pause = min(_LONGEST_PAUSE_SECONDS, self._poll_seconds * 2 ** min(rejections - 1, 30))
        self._not_before = time.monotonic() + pause
        self._note(
            candidate=None,
            rejected=version,
            rejection_reason=shown,
            rejections=rejections,
            reload_failures=1,
        )

    def _fit_to_show(self, reason: str) -> str:
        """Return a reason without credentials, addresses and folders: every client may read it."""
        reason = redact(reason)
        if self._alias.uri.store:
            reason = re.sub(rf"(?<!\w){re.escape(self._alias.uri.store)}/", "<store>/", reason)
        return re.sub(r"(\w+:/|(?<![\w>]))/\S+", "<path>", reason)[:_LONGEST_REASON]

    def _note(self, **changed: Any) -> None:
        """Change what is current; what is counted is added to what it was."""
        with self._noting:
            now = self._current.get()
            added = {name: getattr(now, name) + changed.pop(name, 0) for name in _COUNTED}
            self._current.set(replace(now, **added, **changed))


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


def _reason(error: BaseException) -> str:
    if isinstance(error, ContractMismatch):
        return "; ".join(error.differences)
    if isinstance(error, StoreError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror}: {error.filename}"
    return " ".join(traceback.format_exception_only(error)).strip()


def _without_numbers(reason: str) -> str:
    return re.sub(r"\d+", "", reason)
