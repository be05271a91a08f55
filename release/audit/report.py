"""Run all checks of the audit, print the report, and choose the exit status.

0: nothing found. 1: something found. 2: nothing found, but a service failed.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from release.audit import end_of_life, images, vulnerabilities
from release.audit.check import Check
from release.audit.pins import base_images, locked
from release.kubernetes.kubectl import ClusterError, server_version


def audit(locks: Iterable[Path]) -> Check:
    """Check lock files, base images, the cluster, and SBOMs. Raises AuditError and OSError."""
    packages, platforms, cluster = locked(locks), base_images(), Check([], [], [])
    try:
        platforms["kubernetes", server_version()] = ["the cluster of kubectl's current context"]
    except ClusterError as error:
        cluster.notes.append(f"kubernetes: not checked: {error}")
    dates = end_of_life.check(platforms, packages)
    return vulnerabilities.check(packages) + dates + cluster + images.check()


def exit_status(result: Check) -> int:
    """Return the exit status of the audit."""
    return 1 if result.findings else 2 if result.unchecked else 0


def show(result: Check) -> None:
    """Print the findings, the notes, and the verdict."""
    for finding in result.findings:
        print(f"{finding.name} {finding.version}: {finding.problem} ({', '.join(finding.where)})")
    print(*result.notes, _verdict(result), sep="\n")


def as_json(result: Check) -> str:
    """Return the complete result as JSON."""
    status = exit_status(result)
    verdict = {"failed": status != 0, "status": status, "verdict": _verdict(result)}
    return json.dumps({**verdict, **asdict(result)}, indent=2)


def _verdict(result: Check) -> str:
    """Return the exit status and its reason: make exits with 2 whatever the status is."""
    found = f"exit status {exit_status(result)}: {len(result.findings) or 'nothing'} found"
    return "; not checked: ".join([found, *result.unchecked])
