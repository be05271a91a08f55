"""Generate load for one window: wrk on its own core, and a check whether the window was disturbed.

A window in which other processes used one of the cores is dropped. A window in which wrk itself
was the bottleneck is kept with a note: the server could have done more.
"""

import json
import resource
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.machine import Cores, CoreTime, ProcessTree, on_cores

# Limits for the hypervisor's and for other processes' share of the window's time on a core.
_MAX_STOLEN = 0.02
_MAX_FOREIGN = 0.08
_GENERATOR_FULL = 0.95
_TIMEOUT_SECONDS = 20

# wrk rounds the numbers that it prints; this script prints them exactly.
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
class RequestSpec:
    """A request. headers: in addition to Content-Type."""

    path: str
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "POST"

    def script(self, directory: Path, name: str) -> Path:
        """Write the Lua script that makes wrk send this request; return its path."""
        body_file, script = directory / f"{name}.body", directory / f"{name}.lua"
        body_file.write_bytes(self.body)
        headers = "\n".join(
            f"wrk.headers[{_lua(key)}] = {_lua(value)}" for key, value in self.headers
        )
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
    """The result of one window. Latencies in seconds; shares of the window's time on a core."""

    requests_per_second: float
    latency_p50: float
    latency_p99: float
    # CPU time of the server per request.
    cpu_seconds: float
    errors: int
    stolen: float
    foreign: float
    # More than 1 on several cores.
    server_busy: float
    generator_busy: float

    @property
    def dropped(self) -> str | None:
        """The reason to ignore the window, None if it counts."""
        if self.errors:
            return f"{self.errors} requests failed"
        if self.requests_per_second == 0:
            return "no request got a response"
        if self.stolen > _MAX_STOLEN:
            return f"{self.stolen:.0%} of a core was stolen"
        if self.foreign > _MAX_FOREIGN:
            return f"other processes ran {self.foreign:.0%} of the time"
        return None

    @property
    def note(self) -> str | None:
        """A note about a window that counts, or None."""
        if self.generator_busy > _GENERATOR_FULL and self.generator_busy > self.server_busy:
            return "the load generator's core was the bottleneck"
        return None

    def values(self) -> dict[str, float]:
        """Return the numbers by name."""
        return asdict(self)


@dataclass(frozen=True)
class WrkOutput:
    """The numbers that the script prints. Duration and latencies in microseconds."""

    requests: int
    microseconds: int
    errors: int
    p50: int
    p99: int

    @classmethod
    def parse(cls, output: str) -> "WrkOutput":
        """Parse the line that the script prints. Raises ValueError with the actual output."""
        lines = [line for line in output.splitlines() if line.startswith("{")]
        if not lines:
            raise ValueError(f"wrk: expected a line of JSON, got {output!r}")
        return cls(**json.loads(lines[-1]))


@dataclass(frozen=True)
class Load:
    """The configuration of wrk. seconds: an integer, because wrk accepts no fractions."""

    cores: Cores
    connections: int
    seconds: int

    def window(self, url: str, script: Path, root: int) -> Window:
        """Send requests to a server for one window. root: the server's first process."""
        tree = ProcessTree(root)
        watched = (self.cores.generator, *self.cores.servers)
        before = [CoreTime.of(core) for core in watched]
        server_before, generator_before = tree.cpu_seconds(), _children_seconds()
        printed = WrkOutput.parse(self._wrk(url, script))
        server = tree.cpu_seconds() - server_before
        generator = _children_seconds() - generator_before
        after = [CoreTime.of(core) for core in watched]
        seconds = printed.microseconds / 1e6
        busy = [later.busy - earlier.busy for earlier, later in zip(before, after, strict=True)]
        stolen = max(
            later.stolen - earlier.stolen for earlier, later in zip(before, after, strict=True)
        )
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
    """Return a Lua string literal: for these texts JSON's escapes are valid in Lua."""
    return json.dumps(text)
