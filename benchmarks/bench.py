"""The configuration of one run of the benchmark, shared by its scenarios."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.interleave import Contender
from benchmarks.load import Load, RequestSpec
from benchmarks.machine import Cores
from benchmarks.systems import Server, System

CONNECTIONS = 64
FEWER_CONNECTIONS = 8  # for large bodies


@dataclass(frozen=True)
class Bench:
    """One run."""

    cores: Cores
    # Length of a window.
    seconds: int
    rounds: int
    # Names of the measured systems.
    systems: Sequence[str]
    # For each model a "row" and the prediction for it, the "answer".
    samples: Mapping[str, Mapping[str, list[float]]]
    # The models.
    store: Path
    # Temporary files.
    directory: Path
    # Prints progress.
    report: Callable[[str], None]

    def server(
        self,
        system: System,
        model: str = "iris",
        *,
        settings: Mapping[str, str] | None = None,
        cores: Sequence[int] | None = None,
    ) -> Server:
        """Start a system with a model, by default on the first core for servers."""
        directory = self.store / model / "1"
        answer = json.dumps({"prediction": [self.samples.get(model, {}).get("answer", [])]})
        return Server(
            system,
            {
                "ANSWER": answer,
                "MODEL": str(directory / "model.onnx"),
                "ZIPMAP_MODEL": str(self.store / "zipmap.onnx"),
                "MODEL_URI" if "model_load" in system.command else "MODEL_DIR": str(directory),
                **(settings or {}),
            },
            cores=cores or self.cores.servers[:1],
            directory=self.directory,
        )

    def contender(
        self,
        server: Server,
        name: str,
        request: RequestSpec | None = None,
        *,
        connections: int = CONNECTIONS,
    ) -> Contender:
        """Return a running server as a contender."""
        request = request or server.system.request
        script = request.script(self.directory, f"{name}-{server.port}".replace(" ", "-"))
        load = Load(self.cores, connections, self.seconds)
        return Contender(name, server, request, script, load)

    def wait_until_correct(self, server: Server, model: str = "iris") -> float:
        """Wait for the first correct prediction; return the seconds since the server's start."""
        expected, system = self.samples[model]["answer"], server.system
        return server.wait_until_correct(system.request, lambda body: system.check(body, expected))
