"""Both release modes of one model on this machine: `make run` and `make predict`.

The servers are the real ones, as child processes; what is shown are their answers.
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
_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(model: Path, image_port: int, load_port: int) -> None:
    """Serve a model in both modes until Ctrl-C or TERM, or until one of the servers ends.

    A model that is not there and is named like a data set is trained first. Raises
    FileNotFoundError for any other, ServerDidNotStart, and CalledProcessError when the
    training fails.
    """
    for number in _STOP:
        # As Ctrl-C does, so that the servers are stopped whenever it comes.
        signal.signal(number, signal.default_int_handler)
    if not model.exists():
        if model.parent.name not in DATASETS:
            raise FileNotFoundError(f"MODEL: {model} is not there; `make train` makes one")
        _train(model)
    with _servers(model, image_port, load_port) as servers:
        for server in servers:
            server.wait_until_ready()
            show(server.url, server.mode)
        print("Ctrl-C stops both servers.", flush=True)
        _wait_for_the_end(servers)


def show(url: str, title: str) -> None:
    """Print a server's model, a request with its own sample, and the answer.

    The user:password@ of a URL is sent and not shown.
    """
    with httpx.Client(base_url=url, timeout=10) as client:
        about = client.get("/metadata").raise_for_status().json()
        body = json.dumps({"data": about["data_sample"]})
        print(f"{redact(title)}: {about['name']} {about['version']}, {about['purpose']}")
        has_labels = client.get("/label").status_code == httpx.codes.OK
        for path in ("/predict", "/predict/label") if has_labels else ("/predict",):
            answer = client.post(path, content=body)
            print(f"  $ curl -d '{body}' {redact(url)}{path}\n  {answer.text}")
    print(flush=True)


def _train(model: Path) -> None:
    store, name, version = model.parent.parent, model.parent.name, model.name
    options = {"dataset": name, "version": version, "store": store}
    arguments = [f"--{option}={value}" for option, value in options.items()]
    subprocess.run([sys.executable, "-m", "training", "train", *arguments], check=True)  # noqa: S603


@contextlib.contextmanager
def _servers(model: Path, image_port: int, load_port: int) -> Iterator[list[ServerProcess]]:
    """Start one server a mode; stop them all in the end."""
    sources = {
        "model_in_image": {"MODEL_DIR": str(model), "PORT": str(image_port)},
        "model_load": {"MODEL_URI": str(model), "PORT": str(load_port)},
    }
    with contextlib.ExitStack() as stack:
        with _signals_held_back():
            servers = [
                stack.enter_context(ServerProcess(mode, settings, echo=True))
                for mode, settings in sources.items()
            ]
        yield servers


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Raise KeyboardInterrupt afterwards: between a fork and its record it would leave a child."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda got, _: came.append(got)) for number in _STOP}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _wait_for_the_end(servers: list[ServerProcess]) -> None:
    """Wait for a signal, or for a server that ends by itself."""
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()

    def tell(server: ServerProcess) -> None:
        server.process.wait()
        ended.put(server.mode)

    for server in servers:
        threading.Thread(target=tell, args=[server], daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        print(f"{ended.get()} ended by itself", file=sys.stderr)
