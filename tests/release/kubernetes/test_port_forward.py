"""Connections to pods through kubectl, with a stub of kubectl that forwards to real servers.

tests/e2e tests the real kubectl on a cluster.
"""

import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from release.kubernetes import port_forward as module
from release.kubernetes.kubectl import ClusterError
from release.kubernetes.port_forward import HTTP, PortForwards, port_forward
from release.local.server_process import ServerProcess

# Prints and listens as kubectl does. The pod "once" exits after its first connection, as kubectl
# does when a pod resets a connection; "absent" does not exist; for "silent" it never listens.
STUB = """#!{python}
import pathlib, signal, socket, sys, threading
_, command, pod, port, *options = sys.argv
assert command == "port-forward" and "--namespace=inference" in options, sys.argv
with open({record!r}, "a") as record:
    record.write(f"{{pod}} {{port}}\\n")
if pod == "pod/absent":
    sys.exit('Error from server (NotFound): pods "absent" not found')
if pod == "pod/silent":
    signal.pause()

def copy(source, target):
    while piece := source.recv(65536):
        target.sendall(piece)
    target.shutdown(socket.SHUT_WR)

listener = socket.create_server(("127.0.0.1", 0))
print(f"Forwarding from 127.0.0.1:{{listener.getsockname()[1]}} -> {{port[1:]}}", flush=True)
is_first = not pathlib.Path({flag!r}).exists()
while True:
    accepted, _ = listener.accept()
    if pod == "pod/once" and is_first:
        pathlib.Path({flag!r}).touch()
        sys.exit("error: lost connection to pod")
    server = socket.create_connection(("127.0.0.1", {server_port}))
    for pair in ((accepted, server), (server, accepted)):
        threading.Thread(target=copy, args=pair, daemon=True).start()
"""


@pytest.fixture
def processes(
    running: dict[str, ServerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A file with one line per started kubectl."""
    record = tmp_path / "record"
    record.touch()
    stub = tmp_path / "kubectl"
    stub.write_text(
        STUB.format(
            python=sys.executable,
            record=str(record),
            flag=str(tmp_path / "connection-was-lost"),
            server_port=urlsplit(running["iris"].url).port,
        )
    )
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return record


def model_name(url: str) -> str:
    return str(httpx.get(f"{url}/metadata", timeout=10).json()["name"])


def test_several_requests_share_one_connection(processes: Path) -> None:
    with PortForwards("inference") as pods:
        names = [pods.call("iris", HTTP, model_name) for _ in range(3)]

    assert names == ["iris"] * 3
    assert processes.read_text() == "pod/iris :8000\n"


@pytest.mark.usefixtures("processes")
def test_kubectl_exits_at_the_end_of_the_block() -> None:
    with port_forward("inference", "iris", HTTP) as url:
        assert model_name(url) == "iris"
    address = urlsplit(url)

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((str(address.hostname), int(address.port or 0)))


def test_a_request_is_sent_again_if_the_connection_was_lost(processes: Path) -> None:
    """The pod may be healthy, so a lost connection must not abort a canary."""
    with PortForwards("inference") as pods:
        assert pods.call("once", HTTP, model_name) == "iris"

    assert processes.read_text() == "pod/once :8000\n" * 2


def test_an_error_response_is_not_repeated(processes: Path) -> None:
    def request(url: str) -> None:
        httpx.get(f"{url}/no/such/path", timeout=10).raise_for_status()

    with PortForwards("inference") as pods, pytest.raises(httpx.HTTPStatusError):
        pods.call("iris", HTTP, request)

    assert processes.read_text() == "pod/iris :8000\n"


@pytest.mark.usefixtures("processes")
def test_an_error_names_the_pod_and_the_reason() -> None:
    expected = r'inference/absent: Error from server \(NotFound\): pods "absent" not found'
    with pytest.raises(ClusterError, match=expected), port_forward("inference", "absent", HTTP):
        pass


@pytest.mark.usefixtures("processes")
def test_opening_a_connection_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OPEN_SECONDS", 0.5)

    with (
        pytest.raises(ClusterError, match=r"inference/silent: not open within 0\.5 s"),
        port_forward("inference", "silent", HTTP),
    ):
        pass


def test_an_error_says_that_kubectl_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")

    with (
        pytest.raises(ClusterError, match="kubectl: cannot be run: No such file"),
        port_forward("inference", "iris", HTTP),
    ):
        pass
