"""Known vulnerabilities of Python packages, from pip-audit and the service that it queries.

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
# The warnings of a service are about advisories that pip-audit cannot read and leaves out.
_ERROR = re.compile(r"(?m)^(\S*(Error|Timeout)|ERROR:\S+?|WARNING:pip_audit\._service\.\w+): ?.+")


def check(pins: Pins, seconds: float = 120) -> Check:
    """Check package versions. seconds: the longest run of pip-audit."""
    result = Check([], [], [])
    about = f"pip-audit, {os.environ.get('PIP_AUDIT_VULNERABILITY_SERVICE', 'pypi')}"
    rest = set(pins)
    while rest:
        batch = dict(sorted(rest))  # pip-audit rejects two versions of a package
        rest -= set(batch.items())
        try:
            time, answers = _cached(batch, seconds)
        except AuditError as error:
            result.unchecked.append(f"{about}: {error}")
            break
        skipped = [answer["skip_reason"] for answer in answers if "skip_reason" in answer]
        result.unchecked.extend(f"{about}: {reason}" for reason in skipped[:1])
        versions = f"{len(answers) - len(skipped)} of {len(batch)} package versions"
        result.notes.append(f"{versions}: {about}, as of {time:%Y-%m-%d %H:%M} UTC")
        for answer in answers:
            pin = answer["name"], batch[answer["name"]]
            problems = map(_problem, answer.get("vulns", ()))
            result.findings.extend(Finding(*pin, problem, pins[pin]) for problem in problems)
    return result


def _cached(batch: dict[str, str], seconds: float) -> tuple[dt.datetime, Any]:
    """Return pip-audit's answers, of the last day or new, and their time. Raises AuditError."""
    # A local build such as 2.1+cpu has the vulnerabilities of 2.1.
    lines = [f"{name}=={version.partition('+')[0]}\n" for name, version in batch.items()]
    settings = sorted(item for item in os.environ.items() if item[0].startswith("PIP_AUDIT_"))
    key = hashlib.sha256(repr([settings, lines]).encode()).hexdigest()
    path, now = _CACHE / f"{key}.json", dt.datetime.now(dt.UTC)
    with contextlib.suppress(OSError, ValueError, TypeError):
        time, answers = json.loads(path.read_text(encoding="utf-8"))
        if now - dt.datetime.fromisoformat(time) < _MAX_AGE:
            return dt.datetime.fromisoformat(time), answers
    answers = _pip_audit("".join(lines), seconds)
    if all("vulns" in answer for answer in answers):
        with contextlib.suppress(OSError):
            _CACHE.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps([str(now), answers]), encoding="utf-8")
    return now, answers


def _pip_audit(requirements: str, seconds: float) -> Any:
    options = [*OPTIONS.split(), "--requirement=/dev/stdin"]
    done = run([sys.executable, "-m", "pip_audit", *options], seconds, requirements)
    # The exit status is 1 both for vulnerabilities and for errors, but only errors print no JSON.
    error = _ERROR.search(done.stderr)
    if error or not done.stdout:
        raise AuditError(error[0] if error else done.stderr.strip())
    return json.loads(done.stdout)["dependencies"]


def _problem(vulnerability: dict[str, Any]) -> str:
    ids = " ".join([vulnerability["id"], *sorted(vulnerability["aliases"])])
    return f"{ids}, fixed in {', '.join(vulnerability['fix_versions']) or 'no version'}"
