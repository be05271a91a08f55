"""One run of the benchmark: what all its scenarios have in common."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.interleave import Contender
from benchmarks.load import Ask, Load
from benchmarks.machine import Cores
from benchmarks.systems import Server, System

CONNECTIONS = 64
FEWER_CONNECTIONS = 8  # where a body is large


@dataclass(frozen=True)
class Bench:
    """One run. seconds: of a window. systems: the names of those who take part.

    samples: a row for each model and its answer. store: the models. directory: for the files of
    the run. say: told what goes on.
    """

    cores: Cores
    seconds: int
    rounds: int
    systems: Sequence[str]
    samples: Mapping[str, Mapping[str, list[float]]]
    store: Path
    directory: Path
    say: Callable[[str], None]

    def server(
        self,
        system: System,
        model: str = "iris",
        *,
        settings: Mapping[str, str] | None = None,
        cores: Sequence[int] | None = None,
    ) -> Server:
        """Start a system with a model, on the first of the servers' cores by default."""
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
        self, server: Server, name: str, ask: Ask | None = None, *, connections: int = CONNECTIONS
    ) -> Contender:
        """Return a server that runs as one who takes turns."""
        asked = ask or server.system.ask
        script = asked.script(self.directory, f"{name}-{server.port}".replace(" ", "-"))
        load = Load(self.cores, connections, self.seconds)
        return Contender(name, server, asked, script, load)

    def until_right(self, server: Server, model: str = "iris") -> float:
        """Return how long after its start a server answered rightly, in seconds."""
        expected, system = self.samples[model]["answer"], server.system
        return server.wait_until_right(system.ask, lambda body: system.check(body, expected))
