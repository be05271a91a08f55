"""Load for a second or two: wrk on its own core, and what the window was worth.

A window in which others ran on either core says little of the server, so it is dropped. One in
which wrk had no time left is kept and noted: the server could have done more.
"""

import json
import resource
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.machine import Cores, CoreTime, ProcessTree, on_cores

# Of the window's time, on either core.
_MOST_STOLEN = 0.02
_MOST_FOREIGN = 0.08
_GENERATOR_FULL = 0.95
_TIMEOUT_SECONDS = 20

# What wrk prints is rounded; this is not.
_SCRIPT = """
wrk.method = {method}
wrk.headers["Content-Type"] = {content_type}
{headers}
local file = io.open({body_file}, "rb")
wrk.body = file:read("*a")
file:close()
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\\n{{"requests":%d,"microseconds":%d,"errors":%d,"p50":%d,"p99":%d}}\\n',
    summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Ask:
    """A request, and where in the answer the prediction is. headers: beside the body's type."""

    path: str
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "POST"

    def script(self, directory: Path, name: str) -> Path:
        """Write the Lua script that makes wrk ask this; return its path."""
        body_file, script = directory / f"{name}.body", directory / f"{name}.lua"
        body_file.write_bytes(self.body)
        headers = "\n".join(f"wrk.headers[{_lua(key)}] = {_lua(to)}" for key, to in self.headers)
        script.write_text(
            _SCRIPT.format(
                method=_lua(self.method),
                content_type=_lua(self.content_type),
                headers=headers,
                body_file=_lua(str(body_file)),
            ),
            encoding="utf-8",
        )
        return script


@dataclass(frozen=True)
class Window:
    """What one window showed. Latencies in seconds; shares are of the window's time on a core.

    cpu_seconds: of the server, a request. server_busy may be more than 1 on several cores.
    """

    requests_per_second: float
    latency_p50: float
    latency_p99: float
    cpu_seconds: float
    errors: int
    stolen: float
    foreign: float
    server_busy: float
    generator_busy: float

    @property
    def dropped(self) -> str | None:
        """Why the window says nothing, None if it counts."""
        if self.errors:
            return f"{self.errors} requests failed"
        if self.requests_per_second == 0:
            return "no request was answered"
        if self.stolen > _MOST_STOLEN:
            return f"{self.stolen:.0%} of a core was stolen"
        if self.foreign > _MOST_FOREIGN:
            return f"others ran {self.foreign:.0%} of the time"
        return None

    @property
    def note(self) -> str | None:
        """What else is to be known of it."""
        if self.generator_busy > _GENERATOR_FULL and self.generator_busy > self.server_busy:
            return "the load generator's core was the bottleneck"
        return None

    def values(self) -> dict[str, float]:
        """Return the numbers by their names."""
        return asdict(self)


@dataclass(frozen=True)
class Printed:
    """What wrk said. microseconds: how long it took; p50 and p99 too."""

    requests: int
    microseconds: int
    errors: int
    p50: int
    p99: int

    @classmethod
    def of(cls, output: str) -> "Printed":
        """Read the line that the script prints. Raises ValueError with what came instead."""
        lines = [line for line in output.splitlines() if line.startswith("{")]
        if not lines:
            raise ValueError(f"wrk: expected a line of JSON, got {output!r}")
        return cls(**json.loads(lines[-1]))


@dataclass(frozen=True)
class Load:
    """wrk, as it is asked to be. seconds: whole ones, for wrk knows no others."""

    cores: Cores
    connections: int
    seconds: int

    def window(self, url: str, script: Path, root: int) -> Window:
        """Ask a server, whose first process is root, for one window."""
        tree = ProcessTree(root)
        watched = (self.cores.generator, *self.cores.servers)
        before = [CoreTime.of(core) for core in watched]
        server_before, generator_before = tree.cpu_seconds(), _children_seconds()
        printed = Printed.of(self._wrk(url, script))
        server = tree.cpu_seconds() - server_before
        generator = _children_seconds() - generator_before
        after = [CoreTime.of(core) for core in watched]
        seconds = printed.microseconds / 1e6
        busy = [late.busy - early.busy for early, late in zip(before, after, strict=True)]
        stolen = max(late.stolen - early.stolen for early, late in zip(before, after, strict=True))
        foreign = max(busy[0] - generator, sum(busy[1:]) - server, 0.0)
        return Window(
            requests_per_second=printed.requests / seconds,
            latency_p50=printed.p50 / 1e6,
            latency_p99=printed.p99 / 1e6,
            cpu_seconds=server / max(printed.requests, 1),
            errors=printed.errors,
            stolen=stolen / seconds,
            foreign=foreign / seconds,
            server_busy=server / seconds,
            generator_busy=generator / seconds,
        )

    def _wrk(self, url: str, script: Path) -> str:
        command = [
            "wrk", "--threads", "1", "--connections", str(self.connections), "--duration",
            f"{self.seconds}s", "--timeout", f"{_TIMEOUT_SECONDS}s", "--script", str(script), url,
        ]  # fmt: skip
        with on_cores([self.cores.generator]):
            ran = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                timeout=self.seconds + 2 * _TIMEOUT_SECONDS,
            )
        if ran.returncode:
            raise RuntimeError(f"wrk: {ran.stderr.strip() or ran.stdout.strip()}")
        return ran.stdout


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _lua(text: str) -> str:
    """Return a Lua string; JSON's escapes of what we write are Lua's, too."""
    return json.dumps(text)
