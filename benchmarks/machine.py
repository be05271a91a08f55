"""This machine: which core is whose, what was stolen of it, what a tree of processes took.

Linux only, as wrk's windows are judged by what /proc says of them.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
# Of a line of /proc/stat: user, nice, system; iowait is idle, interrupts are nobody's.
_BUSY, _STOLEN = (1, 2, 3), 8


@dataclass(frozen=True)
class Cores:
    """Which cores measure what. generator: wrk's and the harness's. servers: at least one."""

    generator: int
    servers: tuple[int, ...]

    @classmethod
    def of_this_machine(cls) -> "Cores":
        """Share out the cores this process may use. Raises RuntimeError for fewer than two."""
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            raise RuntimeError(
                "a benchmark needs two cores, one for the server and one for the load; "
                f"this process may use {len(allowed)}"
            )
        return cls(allowed[0], tuple(allowed[1:]))


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Let what is started meanwhile run on these cores; this process comes back afterwards."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class CoreTime:
    """What a core did since the machine started, in seconds."""

    busy: float
    stolen: float

    @classmethod
    def of(cls, core: int) -> "CoreTime":
        """Read it now."""
        for line in (_PROC / "stat").read_text().splitlines():
            fields = line.split()
            if fields[0] == f"cpu{core}":
                busy = sum(int(fields[column]) for column in _BUSY)
                return cls(busy / _TICKS, int(fields[_STOLEN]) / _TICKS)
        raise LookupError(f"/proc/stat has no core {core}")


class ProcessTree:
    """A process and all that it started, now."""

    def __init__(self, root: int) -> None:
        parents = _parents()
        self.pids = [root]
        for pid in self.pids:
            self.pids += [child for child, parent in parents.items() if parent == pid]

    def cpu_seconds(self) -> float:
        """Return the time that all of them ran, in user and in kernel mode."""
        return sum(_ticks(pid) for pid in self.pids) / _TICKS

    def pss_bytes(self) -> int:
        """Return the memory they have: a page that several have counts in parts."""
        return sum(_pss(pid) for pid in self.pids)

    def peak_bytes(self) -> int:
        """Return the sum of the most memory each has had; what they share counts for each."""
        return sum(_field(pid, "status", "VmHWM") for pid in self.pids)


def _parents() -> dict[int, int]:
    found = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            found[int(entry.name)] = int(stat[1])
    return found


def _ticks(pid: int) -> int:
    stat = _stat(pid)
    return int(stat[11]) + int(stat[12]) if stat else 0


def _stat(pid: int) -> list[str]:
    """Return the fields of a process after its name, the state first; none if it ended."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _pss(pid: int) -> int:
    return _field(pid, "smaps_rollup", "Pss")


def _field(pid: int, file: str, name: str) -> int:
    try:
        lines = (_PROC / str(pid) / file).read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
