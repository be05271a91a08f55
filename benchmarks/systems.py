"""What is measured: this server, the limits and its peers; how each is installed and started.

Each is started as its documentation says, with one worker, and asked in its own protocol. What
a peer needs is in .venv/bench/<name>, as benchmarks/<name>/requirements.txt pins it; this server
and what it is compared with at close quarters have the libraries of .venv.
"""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Self

from benchmarks.load import Ask
from benchmarks.machine import on_cores
from benchmarks.samples import ROW

ROOT = Path(__file__).parent.parent
HERE = ROOT / "benchmarks"
ENVIRONMENTS = ROOT / ".venv" / "bench"
_START_SECONDS = 90
_STOP_SECONDS = 15
_POLL_SECONDS = 0.002
_TOLERANCE = 1e-4

ROWS = Ask("/predict", json.dumps({"data": [ROW]}).encode())
TENSORS = Ask(
    "/v2/models/iris/infer",
    json.dumps(
        {
            # KServe's SDK answers 500 without one.
            "id": "1",
            "inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": ROW}],
        }
    ).encode(),
)


class NotMeasured(Exception):  # noqa: N818 - what happened
    """A system that is not there to be measured, and why."""


def _of_rows(answer: Any) -> Any:
    return answer["prediction"][0]


def _of_one_row(answer: Any) -> Any:
    return answer["prediction"]


def of_tensors(answer: Any) -> Any:
    """Return the first output's data of an answer of the Open Inference Protocol."""
    return answer["outputs"][0]["data"]


@dataclass(frozen=True)
class System:
    """A server that answers predictions.

    command: with {port} where its port goes, {python} for its environment's interpreter and
    {bin} for the folder that is in. about: what it is, in a few words. peer: whether it has an
    environment of its own. package: what it is an installation of, its name by default.
    prediction: the first row's, out of an answer.
    """

    name: str
    about: str
    command: Sequence[str]
    ask: Ask = ROWS
    prediction: Callable[[Any], Any] = _of_rows
    environment: Mapping[str, str] = field(default_factory=dict)
    peer: bool = False
    package: str = ""

    @property
    def installed(self) -> str:
        """Return the name of the package, folder and environment that it is of."""
        return self.package or self.name

    @property
    def folder(self) -> Path:
        """Where its own files are."""
        return HERE / self.installed if (HERE / self.installed).is_dir() else ROOT

    @property
    def python(self) -> Path:
        """The interpreter that runs it."""
        environment = ENVIRONMENTS / self.installed if self.peer else Path(sys.prefix)
        return environment / "bin" / "python"

    def check(self, body: bytes, expected: Sequence[float]) -> None:
        """Raise NotMeasured for an answer that is not the expected prediction."""
        try:
            numbers = _flat(self.prediction(json.loads(body)))
            wrong = max(abs(one - other) for one, other in zip(numbers, expected, strict=True))
        except (ValueError, LookupError, TypeError) as error:
            raise NotMeasured(f"answered {body[:200]!r}: {error}") from error
        if not wrong <= _TOLERANCE:
            raise NotMeasured(f"answered {numbers}, expected {list(expected)}")

    def install(self) -> None:
        """Make its environment, unless it is there. Raises NotMeasured with pip's reason."""
        if not self.peer:
            return
        requirements = self.folder / "requirements.txt"
        pinned = hashlib.sha256(requirements.read_bytes()).hexdigest()
        environment = ENVIRONMENTS / self.installed
        stamp = environment / "installed"
        if stamp.exists() and stamp.read_text(encoding="utf-8") == pinned:
            return
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(environment)],
            [
                str(self.python), "-m", "pip", "install", "--quiet", "--no-input",
                "--disable-pip-version-check", "--requirement", str(requirements),
            ],
        ):  # fmt: skip
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode:
                raise NotMeasured(f"not installed: {_last_line(ran.stderr)}")
        stamp.write_text(pinned, encoding="utf-8")

    def version(self) -> str:
        """Return which version of it is pinned, "" where it is this repository's own."""
        if not self.peer:
            return ""
        lines = (self.folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
        return next(line.split("==")[1] for line in lines if line.startswith(f"{self.installed}=="))


_MOSEC = ("{python}", "server.py", "--address", "127.0.0.1", "--port", "{port}")

SYSTEMS = {
    system.name: system
    for system in (
        System(
            "limit",
            "uvicorn reads the body and answers fixed bytes",
            ("{python}", "server.py"),
        ),
        System("this", "this server", ("{python}", "-m", "model_in_image")),
        System(
            "bare",
            "bare ASGI, msgspec, ONNX Runtime: one run a request, inline",
            ("{python}", "server.py"),
        ),
        System("fastapi", "a FastAPI route, carefully written", ("{python}", "server.py")),
        System(
            "book",
            "the book's code",
            (
                "{python}", "-m", "gunicorn", "server:app", "--worker-class",
                "uvicorn_worker.UvicornWorker", "--workers", "1", "--bind", "127.0.0.1:{port}",
                "--no-control-socket",
            ),
            prediction=_of_one_row,
        ),
        System(
            "mosec",
            "mosec, up to 64 requests a batch",
            _MOSEC,
            ask=Ask("/inference", ROWS.body),
            environment={"MOSEC_LOG_LEVEL": "warning"},
            peer=True,
        ),
        System(
            "mosec-single",
            "mosec, a request at a time, as it is by default",
            _MOSEC,
            ask=Ask("/inference", ROWS.body),
            environment={"MOSEC_LOG_LEVEL": "warning", "MOST_ROWS": "1"},
            peer=True,
            package="mosec",
        ),
        System(
            "kserve",
            "KServe's Python SDK",
            ("{python}", "server.py"),
            ask=TENSORS,
            prediction=of_tensors,
            peer=True,
        ),
        System(
            "mlserver",
            "Seldon's MLServer",
            ("{bin}/mlserver", "start", "."),
            ask=TENSORS,
            prediction=of_tensors,
            environment={
                "MLSERVER_HOST": "127.0.0.1",
                "MLSERVER_HTTP_PORT": "{port}",
                "MLSERVER_GRPC_PORT": "{second_port}",
                "MLSERVER_METRICS_PORT": "{third_port}",
                "MLSERVER_METRICS_DIR": "{directory}",
            },
            peer=True,
        ),
        System("litserve", "LitServe", ("{python}", "server.py"), peer=True),
        System(
            "bentoml",
            "BentoML",
            ("{bin}/bentoml", "serve", "server:Inference", "--host", "127.0.0.1", "--port",
             "{port}"),
            environment={"BENTOML_DO_NOT_TRACK": "True"},
            peer=True,
        ),
    )
}  # fmt: skip
MODEL_LOAD = replace(SYSTEMS["this"], command=("{python}", "-m", "model_load"))


class Server:
    """A system that runs, from its start until stop() or the end of a `with`.

    started: when it was executed, by time.perf_counter(). Its output goes to a file in
    `directory`.
    """

    def __init__(
        self,
        system: System,
        settings: Mapping[str, str],
        *,
        cores: Sequence[int],
        directory: Path,
    ) -> None:
        self.system = system
        self.port = _free_port()
        self._log = directory / f"{system.name}-{self.port}.log"
        words = {
            "port": str(self.port),
            "second_port": str(_free_port()),
            "third_port": str(_free_port()),
            "python": str(system.python),
            "bin": str(system.python.parent),
            "directory": str(directory),
        }
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),  # what it writes there goes with the run
            "PORT": str(self.port),
            "ORT_DISABLE_TELEMETRY": "1",
            **{name: value.format(**words) for name, value in system.environment.items()},
            **settings,
        }
        with self._log.open("wb") as log, on_cores(cores):
            self.started = time.perf_counter()
            self.process = subprocess.Popen(
                [word.format(**words) for word in system.command],
                cwd=system.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def url(self, ask: Ask) -> str:
        """Return the address of a request."""
        return f"http://127.0.0.1:{self.port}{ask.path}"

    def answer(self, ask: Ask) -> bytes:
        """Return what it answers. Raises NotMeasured for a status other than 200."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_START_SECONDS)
        try:
            headers = {"Content-Type": ask.content_type, **dict(ask.headers)}
            connection.request(ask.method, ask.path, ask.body, headers)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise NotMeasured(f"answered {response.status}: {body[:200]!r}")
        return body

    def wait_until_right(
        self, ask: Ask, right: Callable[[bytes], None], seconds: float = _START_SECONDS
    ) -> float:
        """Return how long after its start it answered rightly, in seconds.

        right: raises NotMeasured for a wrong answer. Raises NotMeasured also when none comes.
        """
        deadline = self.started + seconds
        why = "no answer"
        while time.perf_counter() < deadline:
            if self.process.poll() is not None:
                raise NotMeasured(f"ended: {_last_line(self._log.read_text(errors='replace'))}")
            try:
                right(self.answer(ask))
            except (OSError, HTTPException) as error:
                why = str(error)
            except NotMeasured as error:
                # Not ready is often answered, too.
                why = str(error)
            else:
                return time.perf_counter() - self.started
            time.sleep(_POLL_SECONDS)
        raise NotMeasured(f"did not answer rightly within {seconds:.0f} s: {why}")

    def stop(self) -> None:
        """End it and all that it started."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_STOP_SECONDS)
        # A session of its own: what its first process left behind.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _flat(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for one in value for number in _flat(one)]
    return [float(value)]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
