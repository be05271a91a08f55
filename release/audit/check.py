"""The types that all checks of the audit share, and a function to run a program."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Pin = tuple[str, str]  # a name and a version
Pins = Mapping[Pin, Sequence[str]]  # the files, or addresses of servers, that use each version


class AuditError(Exception):
    """A file is invalid, or a program or a service failed."""


@dataclass(frozen=True)
class Finding:
    """A known vulnerability or a passed end-of-life date."""

    name: str
    version: str
    problem: str
    where: Sequence[str]


@dataclass(frozen=True)
class Check:
    """The result of a check."""

    findings: list[Finding]
    notes: list[str]  # what was checked, with which service, as of when
    unchecked: list[str]  # checks that could not run, and why

    def __add__(self, other: "Check") -> "Check":
        """Return the combined result."""
        findings, notes = self.findings + other.findings, self.notes + other.notes
        return Check(findings, notes, self.unchecked + other.unchecked)


def run(command: list[str], seconds: float, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program. Raises AuditError after a timeout."""
    try:
        return subprocess.run(  # noqa: S603 - pip-audit, or a scanner from PATH
            command, input=stdin, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise AuditError(f"no result within {seconds:g} s") from None
