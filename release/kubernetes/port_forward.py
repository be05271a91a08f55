"""Reach pods through `kubectl port-forward`.

The connection enters a pod from the pod's own node, so a NetworkPolicy needs no exception for it.
The API server's proxy would not work: it connects from the control plane's address, and a
NetworkPolicy drops such connections on every other node.
"""

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Self, TypeVar

from release.kubernetes.kubectl import ClusterError

HTTP, MANAGEMENT = 8000, 9000
_OPEN_SECONDS = 20
_POLL_SECONDS = 0.02
# After kubectl has lost the connection to a pod, it exits within this time.
_EXIT_SECONDS = 1

Process = subprocess.Popen[bytes]
Result = TypeVar("Result")


@contextmanager
def port_forward(namespace: str, pod: str, port: int) -> Iterator[str]:
    """Yield a URL on loopback that forwards to a port of a pod. Raises ClusterError."""
    with _forward(namespace, pod, port) as (_, url):
        yield url


class PortForwards:
    """Connections to the pods of a namespace, kept open until the end of the `with` block."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._open: dict[tuple[str, int], tuple[Process, str]] = {}
        self._processes = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.close()

    def call(self, pod: str, port: int, request: Callable[[str], Result]) -> Result:
        """Call `request` with the URL of a pod's port, HTTP or MANAGEMENT; return its result.

        If the connection was lost meanwhile, the request is sent again over a new one: kubectl
        exits when a pod resets a single connection, which does not mean that the pod is broken.
        Raises ClusterError if the pod is unreachable, and every exception of the request.
        """
        process, url = self._connection(pod, port)
        try:
            return request(url)
        except Exception:
            if not _has_exited(process):
                raise
        return request(self._connection(pod, port)[1])

    def _connection(self, pod: str, port: int) -> tuple[Process, str]:
        """Return kubectl's process and its URL; start kubectl again if it has exited."""
        connection = self._open.get((pod, port))
        if connection is None or connection[0].poll() is not None:
            connection = self._processes.enter_context(_forward(self._namespace, pod, port))
            self._open[pod, port] = connection
        return connection


@contextmanager
def _forward(namespace: str, pod: str, port: int) -> Iterator[tuple[Process, str]]:
    """Run kubectl; yield its process and the URL on which it listens."""
    # Files, not pipes: kubectl prints a line for each connection and would block on a full pipe.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(  # noqa: S603 - the user's own kubectl
                [  # noqa: S607
                    "kubectl", "port-forward", f"pod/{pod}", f":{port}",
                    f"--namespace={namespace}", "--address=127.0.0.1",
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )  # fmt: skip
        except OSError as error:
            raise ClusterError(f"kubectl: cannot be run: {error.strerror}") from None
        with process:
            try:
                if (url := _url(process, output.fileno())) is None:
                    reason = _text(errors.fileno()) or f"not open within {_OPEN_SECONDS} s"
                    raise ClusterError(f"kubectl port-forward: {namespace}/{pod}: {reason}")
                yield process, url
            finally:
                process.terminate()


def _url(process: Process, output: int) -> str | None:
    """Return the URL on which kubectl listens, None if it exits or does not listen in time."""
    deadline = time.monotonic() + _OPEN_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if match := re.search(r"Forwarding from (\S+) ->", _text(output)):
            return f"http://{match[1]}"
        time.sleep(_POLL_SECONDS)
    return None


def _has_exited(process: Process) -> bool:
    try:
        process.wait(_EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _text(descriptor: int) -> str:
    # pread does not move the file's position, which kubectl shares.
    return os.pread(descriptor, 1 << 16, 0).decode(errors="replace").strip()
