"""Check Python packages for known vulnerabilities with pip-audit.

The service is PyPI, or OSV if PIP_AUDIT_VULNERABILITY_SERVICE=osv; PIP_AUDIT_OSV_URL is its URL.
"""

import contextlib
import datetime as dt
import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from release.audit.check import AuditError, Check, Finding, Pins, run

_CACHE = Path(".venv", "audit")
_MAX_AGE = dt.timedelta(days=1)
OPTIONS = "--no-deps --disable-pip --timeout=10 --progress-spinner=off --format=json --output=-"
# A warning of a service means that pip-audit skipped an advisory that it cannot read.
_ERROR = re.compile(r"(?m)^(\S*(Error|Timeout)|ERROR:\S+?|WARNING:pip_audit\._service\.\w+): ?.+")


def check(pins: Pins, seconds: float = 120) -> Check:
    """Check package versions. seconds: the timeout of one run of pip-audit."""
    result = Check([], [], [])
    service = f"pip-audit, {os.environ.get('PIP_AUDIT_VULNERABILITY_SERVICE', 'pypi')}"
    rest = set(pins)
    while rest:
        batch = dict(sorted(rest))  # pip-audit rejects two versions of one package
        rest -= set(batch.items())
        try:
            time, packages = _cached(batch, seconds)
        except AuditError as error:
            result.unchecked.append(f"{service}: {error}")
            break
        skipped = [package["skip_reason"] for package in packages if "skip_reason" in package]
        result.unchecked.extend(f"{service}: {reason}" for reason in skipped[:1])
        versions = f"{len(packages) - len(skipped)} of {len(batch)} package versions"
        result.notes.append(f"{versions}: {service}, as of {time:%Y-%m-%d %H:%M} UTC")
        for package in packages:
            pin = package["name"], batch[package["name"]]
            problems = map(_problem, package.get("vulns", ()))
            result.findings.extend(Finding(*pin, problem, pins[pin]) for problem in problems)
    return result


def _cached(batch: dict[str, str], seconds: float) -> tuple[dt.datetime, Any]:
    """Return results of pip-audit, at most a day old, and their time. Raises AuditError."""
    # A local version such as 2.1+cpu has the vulnerabilities of 2.1.
    lines = [f"{name}=={version.partition('+')[0]}\n" for name, version in batch.items()]
    settings = sorted(item for item in os.environ.items() if item[0].startswith("PIP_AUDIT_"))
    key = hashlib.sha256(repr([settings, lines]).encode()).hexdigest()
    path, now = _CACHE / f"{key}.json", dt.datetime.now(dt.UTC)
    with contextlib.suppress(OSError, ValueError, TypeError):
        time, packages = json.loads(path.read_text(encoding="utf-8"))
        if now - dt.datetime.fromisoformat(time) < _MAX_AGE:
            return dt.datetime.fromisoformat(time), packages
    packages = _pip_audit("".join(lines), seconds)
    if all("vulns" in package for package in packages):
        with contextlib.suppress(OSError):
            _CACHE.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps([str(now), packages]), encoding="utf-8")
    return now, packages


def _pip_audit(requirements: str, seconds: float) -> Any:
    options = [*OPTIONS.split(), "--requirement=/dev/stdin"]
    done = run([sys.executable, "-m", "pip_audit", *options], seconds, requirements)
    # The exit status is 1 for vulnerabilities and for errors; only after an error there is no JSON.
    error = _ERROR.search(done.stderr)
    if error or not done.stdout:
        raise AuditError(error[0] if error else done.stderr.strip())
    return json.loads(done.stdout)["dependencies"]


def _problem(vulnerability: dict[str, Any]) -> str:
    ids = " ".join([vulnerability["id"], *sorted(vulnerability["aliases"])])
    return f"{ids}, fixed in {', '.join(vulnerability['fix_versions']) or 'no version'}"
