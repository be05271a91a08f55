"""A server of either mode as a child process on this machine.

Used by local.py and by the tests: both start `python -m <mode>` as a user does, learn its
address from its log and wait until it answers, so no port has to be free beforehand.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any, Self

import httpx

_START_SECONDS = 60
_STOP_SECONDS = 60


class ServerDidNotStart(Exception):  # noqa: N818 - what happened
    """A server that ended, or did not answer, instead of becoming ready."""


class ServerProcess:
    """One `python -m <mode>`, started when made, ended by stop() or the end of a `with`.

    settings: its environment, beside `environment` (this process's own by default). A PORT
    of 0 takes any free one. What it logs is kept in `logged`; with echo, what is not plain
    progress is repeated on stderr.
    """

    def __init__(
        self,
        mode: str,
        settings: Mapping[str, str],
        *,
        environment: Mapping[str, str] | None = None,
        echo: bool = False,
    ) -> None:
        self.mode = mode
        self.logged: list[str] = []
        self.url = ""
        self.management_url: str | None = None
        self._echo = echo
        self._listening_or_ended = threading.Event()
        self.process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", mode],
            env={**(os.environ if environment is None else environment), **settings},
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C is for the parent, which then stops its servers one by one.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_until_ready(self) -> Self:
        """Return once it is ready. Raises ServerDidNotStart with its last words."""
        self._listening_or_ended.wait(_START_SECONDS)
        try:
            # The socket is open before the model is: the answer comes when it is ready.
            httpx.get(f"{self.url}/v2/health/ready", timeout=_START_SECONDS).raise_for_status()
        except httpx.HTTPError as error:
            self.stop()
            raise ServerDidNotStart("".join(self.logged) or str(error)) from error
        return self

    def wait(self) -> int:
        """Return its exit status once it has ended by itself and all its log is read."""
        status = self.process.wait(_STOP_SECONDS)
        self._reader.join(_STOP_SECONDS)
        return status

    def stop(self) -> int:
        """End it with TERM, which lets it answer what it began; return its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.wait()

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return what it logged under an event so far."""
        lines = [json.loads(line) for line in self.logged if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def _read_log(self) -> None:
        assert self.process.stderr is not None  # noqa: S101 - asked for above
        with self.process.stderr as log:
            for line in log:
                self.logged.append(line)
                self._heed(line)
        self._listening_or_ended.set()

    def _heed(self, line: str) -> None:
        fields = json.loads(line) if line.startswith("{") else {}
        if fields.get("event") == "listening":
            self.url, self.management_url = fields["url"], fields.get("management_url")
            self._listening_or_ended.set()
        if self._echo and fields.get("level") not in ("info", "debug"):
            sys.stderr.write(line)
