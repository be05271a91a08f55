"""The measured systems: this server, the baselines, and the peers, and how each is started.

Each system starts as its documentation recommends, with one worker, and receives requests in its
own protocol. A peer has its own environment in .venv/bench/<name>, pinned by
benchmarks/<name>/requirements.txt. This server and the baselines use the libraries of .venv.
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

from benchmarks.load import RequestSpec
from benchmarks.machine import on_cores
from benchmarks.samples import ROW

ROOT = Path(__file__).parent.parent
HERE = ROOT / "benchmarks"
ENVIRONMENTS = ROOT / ".venv" / "bench"
_START_SECONDS = 90
_STOP_SECONDS = 15
_POLL_SECONDS = 0.002
_TOLERANCE = 1e-4

ROWS = RequestSpec("/predict", json.dumps({"data": [ROW]}).encode())
TENSORS = RequestSpec(
    "/v2/models/iris/infer",
    json.dumps(
        {
            # KServe's SDK returns 500 without an id.
            "id": "1",
            "inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": ROW}],
        }
    ).encode(),
)


class NotMeasured(Exception):  # noqa: N818 - an outcome, not an error
    """A system cannot be measured; the message is the reason."""


def _first_row(answer: Any) -> Any:
    return answer["prediction"][0]


def _only_row(answer: Any) -> Any:
    return answer["prediction"]


def of_tensors(answer: Any) -> Any:
    """Return the data of the first output in a response of the Open Inference Protocol."""
    return answer["outputs"][0]["data"]


@dataclass(frozen=True)
class System:
    """A server that returns predictions."""

    name: str
    about: str
    # {port}, {python} (the interpreter of its environment), and {bin} (its folder) are replaced.
    command: Sequence[str]
    request: RequestSpec = ROWS
    # Returns the first row's prediction from the decoded response.
    prediction: Callable[[Any], Any] = _first_row
    environment: Mapping[str, str] = field(default_factory=dict)
    # Whether it has an environment of its own.
    peer: bool = False
    # The package, and the name of the folder, if they differ from the system's name.
    package: str = ""

    @property
    def installed(self) -> str:
        """The name of its package, folder, and environment."""
        return self.package or self.name

    @property
    def folder(self) -> Path:
        """Its working directory: the folder with its server, or the repository for this server.

        Raises FileNotFoundError if a system that runs a file of its own has no folder.
        """
        if self.command[1:2] == ("-m",) and self.command[2].startswith("model_"):
            return ROOT
        folder = HERE / self.installed
        if not folder.is_dir():
            raise FileNotFoundError(f"{self.name}: expected its server in {folder}")
        return folder

    @property
    def python(self) -> Path:
        """The Python interpreter of its environment."""
        environment = ENVIRONMENTS / self.installed if self.peer else Path(sys.prefix)
        return environment / "bin" / "python"

    def check(self, body: bytes, expected: Sequence[float]) -> None:
        """Raise NotMeasured unless a response body contains the expected prediction."""
        try:
            numbers = _flat(self.prediction(json.loads(body)))
            pairs = zip(numbers, expected, strict=True)
            error = max(abs(number - other) for number, other in pairs)
        except (ValueError, LookupError, TypeError) as invalid:
            raise NotMeasured(f"returned {body[:200]!r}: {invalid}") from invalid
        # `not <=` also rejects NaN.
        if not error <= _TOLERANCE:
            raise NotMeasured(f"returned {numbers}, expected {list(expected)}")

    def install(self) -> None:
        """Create its environment if it is missing. Raises NotMeasured with pip's error."""
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
        """Return the pinned version of a peer, "" for the systems of this repository."""
        if not self.peer:
            return ""
        lines = (self.folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
        return next(line.split("==")[1] for line in lines if line.startswith(f"{self.installed}=="))


_MOSEC = ("{python}", "server.py", "--address", "127.0.0.1", "--port", "{port}")

SYSTEMS = {
    system.name: system
    for system in (
        System(
            "uvicorn_baseline",
            "uvicorn reads the body and returns fixed bytes",
            ("{python}", "server.py"),
        ),
        System("this", "this server", ("{python}", "-m", "model_in_image")),
        System(
            "asgi_onnxruntime",
            "plain ASGI, msgspec, ONNX Runtime: one run per request, on the event loop",
            ("{python}", "server.py"),
        ),
        System("fastapi", "a tuned FastAPI route", ("{python}", "server.py")),
        System(
            "mlsdp_book",
            "the code of the MLSDP book",
            (
                "{python}", "-m", "gunicorn", "server:app", "--worker-class",
                "uvicorn_worker.UvicornWorker", "--workers", "1", "--bind", "127.0.0.1:{port}",
                "--no-control-socket",
            ),
            prediction=_only_row,
        ),
        System(
            "mosec",
            "mosec, batches of up to 64 requests",
            _MOSEC,
            request=RequestSpec("/inference", ROWS.body),
            environment={"MOSEC_LOG_LEVEL": "warning"},
            peer=True,
        ),
        System(
            "mosec-single",
            "mosec, one request per batch, its default",
            _MOSEC,
            request=RequestSpec("/inference", ROWS.body),
            environment={"MOSEC_LOG_LEVEL": "warning", "MAX_ROWS": "1"},
            peer=True,
            package="mosec",
        ),
        System(
            "kserve",
            "KServe's Python SDK",
            ("{python}", "server.py"),
            request=TENSORS,
            prediction=of_tensors,
            peer=True,
        ),
        System(
            "mlserver",
            "Seldon's MLServer",
            ("{bin}/mlserver", "start", "."),
            request=TENSORS,
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
# Former names, which users' scripts pass in SYSTEMS=.
ALIASES = {"limit": "uvicorn_baseline", "bare": "asgi_onnxruntime", "book": "mlsdp_book"}
MODEL_LOAD = replace(SYSTEMS["this"], command=("{python}", "-m", "model_load"))


class Server:
    """A running system, from the constructor to stop() or the end of the `with` block.

    Its output goes to a file in `directory`.
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
            "HOME": str(directory),  # its files there are deleted with the run
            "PORT": str(self.port),
            "ORT_DISABLE_TELEMETRY": "1",
            **{name: value.format(**words) for name, value in system.environment.items()},
            **settings,
        }
        with self._log.open("wb") as log, on_cores(cores):
            # By time.perf_counter(), before exec.
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

    def url(self, request: RequestSpec) -> str:
        """Return the address of a request."""
        return f"http://127.0.0.1:{self.port}{request.path}"

    def send(self, request: RequestSpec) -> bytes:
        """Send a request; return the body. Raises NotMeasured for a status other than 200."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_START_SECONDS)
        try:
            headers = {"Content-Type": request.content_type, **dict(request.headers)}
            connection.request(request.method, request.path, request.body, headers)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise NotMeasured(f"returned {response.status}: {body[:200]!r}")
        return body

    def wait_until_correct(
        self,
        request: RequestSpec,
        check: Callable[[bytes], None],
        seconds: float = _START_SECONDS,
    ) -> float:
        """Wait for the first correct response; return the seconds since the start.

        check: raises NotMeasured for an incorrect body. Raises NotMeasured if no response is
        correct in time.
        """
        deadline = self.started + seconds
        reason = "no response"
        while time.perf_counter() < deadline:
            if self.process.poll() is not None:
                raise NotMeasured(f"exited: {_last_line(self._log.read_text(errors='replace'))}")
            try:
                check(self.send(request))
            except (OSError, HTTPException) as error:
                reason = str(error)
            except NotMeasured as error:
                # Many servers respond before they are ready.
                reason = str(error)
            else:
                return time.perf_counter() - self.started
            time.sleep(_POLL_SECONDS)
        raise NotMeasured(f"no correct response within {seconds:.0f} s: {reason}")

    def stop(self) -> None:
        """Stop the system and all of its processes."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_STOP_SECONDS)
        # It runs in a session of its own, so this reaches the children of its first process.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _flat(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for item in value for number in _flat(item)]
    return [float(value)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"
