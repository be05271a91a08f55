"""Start a server of either mode as a child process, and read its address from its log.

The server is started as a user starts it: `python -m <mode>`. Its address comes from the log, so
no free port has to be found beforehand.
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


class ServerDidNotStart(Exception):  # noqa: N818 - a state, not an error of this program
    """A server that exited or did not answer before it was ready; the message is its log."""


class ServerProcess:
    """One `python -m <mode>`, started by the constructor, stopped by stop() or a `with`.

    settings: variables that are added to `environment`, which is this process's own by default.
    PORT=0 takes any free port. echo: repeat warnings, errors, and text of the server on stderr.
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
        # All lines of the log so far.
        self.logged: list[str] = []
        # Set once the server listens.
        self.url = ""
        self.management_url: str | None = None
        self._echo = echo
        self._listening_or_ended = threading.Event()
        self.process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", mode],
            env={**(os.environ if environment is None else environment), **settings},
            stderr=subprocess.PIPE,
            text=True,
            # A session of its own: Ctrl-C reaches only the parent, which then stops its servers
            # one by one.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_until_ready(self) -> Self:
        """Return once the server is ready. Raises ServerDidNotStart with its log."""
        self._listening_or_ended.wait(_START_SECONDS)
        try:
            # The socket listens before the model is open, and the request waits there until the
            # server is ready: no polling is needed.
            httpx.get(f"{self.url}/v2/health/ready", timeout=_START_SECONDS).raise_for_status()
        except httpx.HTTPError as error:
            self.stop()
            raise ServerDidNotStart("".join(self.logged) or str(error)) from error
        return self

    def wait(self) -> int:
        """Wait until the server exits and its log is read; return its exit status."""
        status = self.process.wait(_STOP_SECONDS)
        self._reader.join(_STOP_SECONDS)
        return status

    def stop(self) -> int:
        """Send TERM, wait until the server has drained, and return its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.wait()

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of an event so far."""
        lines = [json.loads(line) for line in self.logged if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def _read_log(self) -> None:
        assert self.process.stderr is not None  # noqa: S101 - stderr=PIPE above
        with self.process.stderr as log:
            for line in log:
                self.logged.append(line)
                self._handle(line)
        self._listening_or_ended.set()

    def _handle(self, line: str) -> None:
        fields = json.loads(line) if line.startswith("{") else {}
        if fields.get("event") == "listening":
            self.url, self.management_url = fields["url"], fields.get("management_url")
            self._listening_or_ended.set()
        if self._echo and fields.get("level") not in ("info", "debug"):
            sys.stderr.write(line)
