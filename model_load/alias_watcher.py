"""Poll an alias; download and verify its version before the workers may serve it.

Runs in a process of its own, which the server starts and restarts. If a download or a model
crashes that process or exhausts its memory, the workers keep serving the last good version.
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
from serving.workers.backoff import Backoff
from serving.workers.model_source import ServedVersion
from serving.workers.shared_value import SharedValue

_MAX_BACKOFF_SECONDS = 300.0
# The share of MODEL_POLL_SECONDS by which each pause varies.
_JITTER = 0.1
# Timeout of reading the alias. It is read again at the next poll, so a short one is enough.
_READ_SECONDS = 5.0
_MAX_REASON_CHARACTERS = 4096
_NOT_REJECTED: dict[str, Any] = {"rejected": None, "rejection_reason": None, "rejections": 0}
_COUNTERS = ("reloads", "reload_seconds", "reload_failures")
# The highest value: if memory is short, the kernel kills this process before any worker.
_OOM_SCORE = "1000"


class AliasWatcher:
    """Polls one alias and writes the version to serve, and every failure, into a shared value.

    The alias is read on the main thread; its version is downloaded and verified on another one.
    The shared value holds the whole state, so this process may be killed, or exit to cancel an
    attempt, and its successor resumes from there.
    """

    def __init__(self, settings: ModelLoadSettings, current: SharedValue[ServedVersion]) -> None:
        self._settings = settings
        self._poll_seconds = settings.model_poll_seconds or 0
        self._current = current
        # Serialises read-modify-write of the shared value between the two threads.
        self._update_lock = threading.Lock()
        self._alias = _alias(settings)
        # Protects the served version from eviction.
        self._served_lock = ExitStack()
        self._attempt: threading.Thread | None = None
        self._verify_until = float("inf")
        self._backoff = Backoff(self._poll_seconds, _MAX_BACKOFF_SECONDS)
        now = current.get()
        with suppress(StoreError):  # evicted from the cache: the first poll downloads it again
            self._served_lock.enter_context(self._alias.lock_for_use(Path(now.directory)))
        # A candidate at the start was left by a predecessor that did not survive it.
        if now.candidate:
            self._reject(
                now.candidate, "the process that verified it was killed. Too little memory?"
            )

    def run(self) -> NoReturn:
        """Poll the alias every MODEL_POLL_SECONDS until this process ends."""
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
        while True:
            # Jitter, so that the replicas do not poll the store at the same moment.
            time.sleep(self._poll_seconds * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311
            self.poll()

    def poll(self) -> None:
        """Read the alias once and start, cancel, or continue an attempt to serve its version."""
        version = self._read_alias()
        if self._attempt and self._attempt.is_alive():
            self._check_attempt(version)
        elif version is not None and self._is_served(version):
            self._update(**_NOT_REJECTED)
        elif version is not None and self._is_due(version):
            self._verify_until = float("inf")
            self._attempt = threading.Thread(target=self._try, args=(version,), name=version)
            self._attempt.start()

    def _read_alias(self) -> str | None:
        """Return the version that the alias names; record the error and return None on failure."""
        now = self._current.get()
        try:
            version = self._alias.version()
        except BaseException as error:  # noqa: BLE001 - a panic of obstore is a BaseException
            reason = _reason(error)
            # Logged once per outage; the metric counts every failed poll.
            if now.alias_error is None:
                logs.error("alias_not_read", served=now.version, reason=reason)
            alias = f"{self._alias.uri.name}@{self._alias.uri.alias}"
            self._update(alias_error=self._redact(f"{alias}: {reason}"), reload_failures=1)
            return None
        self._update(alias_error=None, polled_at=time.time())
        return version

    def _is_served(self, version: str) -> bool:
        now = self._current.get()
        return version == now.version and (Path(now.directory) / MODEL_FILE).is_file()

    def _is_due(self, version: str) -> bool:
        return version != self._current.get().rejected or self._backoff.is_due()

    def _check_attempt(self, version: str | None) -> None:
        """Cancel the running attempt if the alias has moved or its golden rows take too long.

        A download and a run of a model cannot be interrupted in a thread, so this process exits.
        """
        candidate = str(self._current.get().candidate)
        if version not in (None, candidate):
            logs.info("try_abandoned", version=candidate, wanted=version)
            self._update(candidate=None)
            os._exit(0)
        if time.monotonic() > self._verify_until:
            seconds = self._settings.model_pull_seconds
            self._reject(candidate, f"its golden rows took longer than {seconds:g} s")
            os._exit(0)

    def _try(self, version: str) -> None:
        """Download and verify a version and let the workers serve it; reject it on any error."""
        if version != self._current.get().rejected:
            self._update(**_NOT_REJECTED)
        self._update(candidate=version)
        try:
            self._promote(version)
        except BaseException as error:  # noqa: BLE001 - a panic of obstore is a BaseException
            self._reject(version, _reason(error))

    def _promote(self, version: str) -> None:
        started = time.monotonic()
        directory = self._alias.artifact(version)
        with ExitStack() as candidate_lock:
            candidate_lock.enter_context(self._alias.lock_for_use(directory))
            self._verify_until = time.monotonic() + self._settings.model_pull_seconds
            contract = verify_files(directory)
            Model.open(directory, contract, max_rows=self._settings.max_batch_rows)
            # The alias may have moved during the download: never serve a withdrawn version.
            if self._alias.version() != version:
                self._update(candidate=None)
                return
            self._served_lock.close()
            self._served_lock = candidate_lock.pop_all()
        self._update(
            version=version,
            directory=str(directory),
            candidate=None,
            reloads=1,
            reload_seconds=time.monotonic() - started,
            **_NOT_REJECTED,
        )

    def _reject(self, version: str, reason: str) -> None:
        """Keep the served version, record why the candidate failed, and schedule a retry."""
        now = self._current.get()
        public_reason = self._redact(f"{self._alias.uri.name}/{version}: {reason}")
        # Logged once per reason. Durations and sizes differ at each retry and are ignored.
        if version != now.rejected or _without_numbers(public_reason) != _without_numbers(
            now.rejection_reason or ""
        ):
            logs.error("model_refused", version=version, served=now.version, reason=reason)
        rejections = now.rejections + 1 if version == now.rejected else 1
        self._backoff.pause(rejections)
        self._update(
            candidate=None,
            rejected=version,
            rejection_reason=public_reason,
            rejections=rejections,
            reload_failures=1,
        )

    def _redact(self, reason: str) -> str:
        """Return a reason without credentials, addresses and paths: /metadata shows it."""
        reason = redact(reason)
        if self._alias.uri.store:
            reason = re.sub(rf"(?<!\w){re.escape(self._alias.uri.store)}/", "<store>/", reason)
        return re.sub(r"(\w+:/|(?<![\w>]))/\S+", "<path>", reason)[:_MAX_REASON_CHARACTERS]

    def _update(self, **changes: Any) -> None:
        """Change fields of the shared value; values of counters are added."""
        with self._update_lock:
            now = self._current.get()
            counters = {name: getattr(now, name) + changes.pop(name, 0) for name in _COUNTERS}
            self._current.set(replace(now, **counters, **changes))


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
