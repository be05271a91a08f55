"""What the checks of the audit have in common: their input, their result, running a program."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Name and version, and where they are used: files, or addresses of servers.
Pin = tuple[str, str]
Pins = Mapping[Pin, Sequence[str]]


class AuditError(Exception):
    """A file, a program or a service is not what the audit needs."""


@dataclass(frozen=True)
class Finding:
    """A known vulnerability, or an end of life."""

    name: str
    version: str
    problem: str
    where: Sequence[str]


@dataclass(frozen=True)
class Check:
    """The result of a check."""

    findings: list[Finding]
    notes: list[str]  # what was checked, with which service, as of when
    unchecked: list[str]  # what a service did not answer, and why

    def __add__(self, other: "Check") -> "Check":
        """Return both results as one."""
        findings, notes = self.findings + other.findings, self.notes + other.notes
        return Check(findings, notes, self.unchecked + other.unchecked)


def run(command: list[str], seconds: float, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program. Raises AuditError if it takes longer than some seconds."""
    try:
        return subprocess.run(  # noqa: S603 - pip-audit, or a scanner on the user's PATH
            command, input=stdin, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise AuditError(f"no answer within {seconds:g} s") from None
