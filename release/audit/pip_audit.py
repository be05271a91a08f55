"""pip-audit, through its own command line: what the network knows of versions today.

It need not be installed; audit.py then asks the extract. PIP_AUDIT in the environment names
another program than `pip-audit`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from release.audit.advisories import Finding
from serving.environment import normalized

_LONG_SECONDS = 120


class NotAskedError(Exception):
    """Why pip-audit did not answer."""


@dataclass(frozen=True)
class Answer:
    """findings: by each package it answered for. silence: why it did not for the others."""

    findings: dict[str, list[Finding]]
    silence: str


def ask(packages: Mapping[str, str]) -> Answer:
    """Ask about versions by package."""
    try:
        known = json.loads(_run(packages))["dependencies"]
        # What it could not find it skips, says that no vulnerability is known, and ends with 0.
        skipped = [one["skip_reason"] for one in known if "vulns" not in one]
        return Answer(
            {
                (name := normalized(one["name"])): _findings(name, packages[name], one["vulns"])
                for one in known
                if "vulns" in one
            },
            f"did not answer: {skipped[0] if skipped else 'it left them out'}",
        )
    except NotAskedError as why:
        return Answer({}, str(why))
    except (ValueError, KeyError, TypeError):
        return Answer({}, "could not be asked: its answer is not what it is known to be")


def _run(packages: Mapping[str, str]) -> str:
    """Return what it printed: JSON. Its status is 1 both for findings and for its own errors."""
    program = os.environ.get("PIP_AUDIT") or _installed()
    with tempfile.TemporaryDirectory() as directory:
        # Not the locks: it would leave out what is for other systems than this one.
        wanted = Path(directory) / "requirements.txt"
        wanted.write_text("".join(f"{name}=={version}\n" for name, version in packages.items()))
        options = ("--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json")
        try:
            done = subprocess.run(  # noqa: S603 - the user's own pip-audit
                [program, *options, "-r", str(wanted)],
                capture_output=True,
                text=True,
                timeout=_LONG_SECONDS,
                check=False,
            )
        except FileNotFoundError:
            raise NotAskedError("not installed") from None
        except OSError as error:
            raise NotAskedError(f"could not be run: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise NotAskedError(f"no answer within {_LONG_SECONDS} s") from None
    if not done.stdout.strip():
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise NotAskedError(f"could not be asked: {said[-1]}")
    return done.stdout


def _installed() -> str:
    """Return it from the path, or from beside the Python that runs this."""
    beside = Path(sys.executable).parent
    return shutil.which("pip-audit") or shutil.which("pip-audit", path=beside) or "pip-audit"


def _findings(package: str, version: str, vulnerabilities: list[dict[str, Any]]) -> list[Finding]:
    return [
        Finding(
            package,
            version,
            one["id"],
            " ".join(one.get("description", "").split())[:200],
            tuple(one.get("aliases", ())),
            tuple(one["fix_versions"]),
        )
        for one in vulnerabilities
    ]
