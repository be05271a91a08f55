"""Reach pods through `kubectl port-forward`.

The connection enters a pod from the pod's own node, so a NetworkPolicy needs no exception for it.
The API server's proxy connects from the control plane's address, which a policy drops on every
other node.
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
# kubectl ends this soon after it has lost the connection to a pod.
_END_SECONDS = 1

Process = subprocess.Popen[bytes]
Result = TypeVar("Result")


@contextmanager
def port_forward(namespace: str, pod: str, port: int) -> Iterator[str]:
    """Yield a URL on loopback that leads to a port of a pod. Raises ClusterError."""
    with _forward(namespace, pod, port) as (_, url):
        yield url


class PortForwards:
    """Connections to the pods of a namespace that stay open until the end of a `with` block."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._open: dict[tuple[str, int], tuple[Process, str]] = {}
        self._processes = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.close()

    def ask(self, pod: str, port: int, request: Callable[[str], Result]) -> Result:
        """Return the result of a request to the URL of a pod's port, HTTP or MANAGEMENT.

        If the connection was lost meanwhile, the request is sent again over a new one: kubectl
        ends when a pod resets a connection, which says nothing about the pod. Raises ClusterError
        if the pod cannot be reached, and whatever the request raises.
        """
        process, url = self._connection(pod, port)
        try:
            return request(url)
        except Exception:
            if not _has_ended(process):
                raise
        return request(self._connection(pod, port)[1])

    def _connection(self, pod: str, port: int) -> tuple[Process, str]:
        """Return kubectl's process and its URL, started again if it has ended."""
        found = self._open.get((pod, port))
        if found is None or found[0].poll() is not None:
            found = self._processes.enter_context(_forward(self._namespace, pod, port))
            self._open[pod, port] = found
        return found


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
    """Wait until kubectl has printed the address on which it listens; None if it does not."""
    deadline = time.monotonic() + _OPEN_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if found := re.search(r"Forwarding from (\S+) ->", _text(output)):
            return f"http://{found[1]}"
        time.sleep(_POLL_SECONDS)
    return None


def _has_ended(process: Process) -> bool:
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _text(descriptor: int) -> str:
    # pread leaves alone the file's position, which is kubectl's, too.
    return os.pread(descriptor, 1 << 16, 0).decode(errors="replace").strip()
