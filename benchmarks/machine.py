"""Cores, stolen time, and the CPU time and memory of process trees, from /proc (Linux only)."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
# Columns of /proc/stat: user, nice, system. iowait is idle time; interrupts have no process.
_BUSY, _STOLEN = (1, 2, 3), 8


@dataclass(frozen=True)
class Cores:
    """The use of the cores. generator: for wrk and this program. servers: at least one core."""

    generator: int
    servers: tuple[int, ...]

    @classmethod
    def of_this_machine(cls) -> "Cores":
        """Distribute the cores of this process. Raises RuntimeError for fewer than two."""
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            raise RuntimeError(
                "a benchmark needs two cores, one for the server and one for the load; "
                f"this process may use {len(allowed)}"
            )
        return cls(allowed[0], tuple(allowed[1:]))


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Start child processes of the block on these cores; restore this process's own afterwards."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class CoreTime:
    """Seconds that a core was busy or stolen since the machine started."""

    busy: float
    stolen: float

    @classmethod
    def of(cls, core: int) -> "CoreTime":
        """Read the current values of a core."""
        for line in (_PROC / "stat").read_text().splitlines():
            fields = line.split()
            if fields[0] == f"cpu{core}":
                busy = sum(int(fields[column]) for column in _BUSY)
                return cls(busy / _TICKS, int(fields[_STOLEN]) / _TICKS)
        raise LookupError(f"/proc/stat has no core {core}")


class ProcessTree:
    """A process and its descendants at the time of construction."""

    def __init__(self, root: int) -> None:
        parents = _parents()
        self.pids = [root]
        for pid in self.pids:
            self.pids += [child for child, parent in parents.items() if parent == pid]

    def cpu_seconds(self) -> float:
        """Return the CPU time of all processes, user and kernel mode."""
        return sum(_ticks(pid) for pid in self.pids) / _TICKS

    def pss_bytes(self) -> int:
        """Return the proportional set size: a page that n processes share counts 1/n for each."""
        return sum(_pss(pid) for pid in self.pids)

    def peak_bytes(self) -> int:
        """Return the sum of the peak memory of each process; shared pages count for each."""
        return sum(_field(pid, "status", "VmHWM") for pid in self.pids)


def _parents() -> dict[int, int]:
    parents = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            parents[int(entry.name)] = int(stat[1])
    return parents


def _ticks(pid: int) -> int:
    stat = _stat(pid)
    return int(stat[11]) + int(stat[12]) if stat else 0


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the state on; [] if the process has exited."""
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
