"""Run a model in both modes on this machine: `make run` and `make predict`.

The servers are real, as child processes; the printed responses are theirs.
"""

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx

from artifact.redact import redact
from release.local.server_process import ServerProcess

DATASETS = ("iris", "digits", "diabetes")
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(model: Path, image_port: int, load_port: int) -> None:
    """Serve a model in both modes until Ctrl-C, TERM, or the end of one of the servers.

    A model that does not exist is trained first if it has the name of a data set. Raises
    FileNotFoundError for any other name, ServerDidNotStart, and CalledProcessError if the
    training fails.
    """
    for number in _STOP_SIGNALS:
        # All of them raise KeyboardInterrupt, so that the `with` below stops the servers.
        signal.signal(number, signal.default_int_handler)
    if not model.exists():
        if model.parent.name not in DATASETS:
            raise FileNotFoundError(
                f"MODEL: {model} does not exist. Train one of {', '.join(DATASETS)} with "
                "`make train`, or pass the directory of a model"
            )
        _train(model)
    with _servers(model, image_port, load_port) as servers:
        for server in servers:
            server.wait_until_ready()
            show(server.url, server.mode)
        print("Ctrl-C stops both servers.", flush=True)
        _wait_for_the_end(servers)


def show(url: str, title: str) -> None:
    """Print the model of a server, a request with its sample rows, and the response.

    Credentials in the URL are sent but not printed.
    """
    with httpx.Client(base_url=url, timeout=10) as client:
        metadata = client.get("/metadata").raise_for_status().json()
        body = json.dumps({"data": metadata["data_sample"]})
        print(f"{redact(title)}: {metadata['name']} {metadata['version']}, {metadata['purpose']}")
        has_labels = client.get("/label").status_code == httpx.codes.OK
        for path in ("/predict", "/predict/label") if has_labels else ("/predict",):
            response = client.post(path, content=body)
            print(f"  $ curl -d '{body}' {redact(url)}{path}\n  {response.text}")
    print(flush=True)


def _train(model: Path) -> None:
    store, name, version = model.parent.parent, model.parent.name, model.name
    options = {"dataset": name, "version": version, "store": store}
    arguments = [f"--{option}={value}" for option, value in options.items()]
    subprocess.run([sys.executable, "-m", "training", "train", *arguments], check=True)  # noqa: S603


@contextlib.contextmanager
def _servers(model: Path, image_port: int, load_port: int) -> Iterator[list[ServerProcess]]:
    """Start one server of each mode; stop both at the end."""
    sources = {
        "model_in_image": {"MODEL_DIR": str(model), "PORT": str(image_port)},
        "model_load": {"MODEL_URI": str(model), "PORT": str(load_port)},
    }
    with contextlib.ExitStack() as stack:
        with _signals_deferred():
            servers = [
                stack.enter_context(ServerProcess(mode, settings, echo=True))
                for mode, settings in sources.items()
            ]
        yield servers


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """Raise KeyboardInterrupt for a signal only at the end of the `with`.

    An exception between the fork of a server and the assignment to its variable would leave the
    server running.
    """
    received: list[int] = []
    handlers = {
        number: signal.signal(number, lambda received_number, _: received.append(received_number))
        for number in _STOP_SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt


def _wait_for_the_end(servers: list[ServerProcess]) -> None:
    """Wait for a signal, or until one of the servers exits by itself."""
    exited: queue.SimpleQueue[str] = queue.SimpleQueue()

    def wait_for(server: ServerProcess) -> None:
        server.process.wait()
        exited.put(server.mode)

    for server in servers:
        threading.Thread(target=wait_for, args=[server], daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        print(f"{exited.get()} exited by itself", file=sys.stderr)
