"""Make the extracts that an audit asks: `make audit-data`, from clones of their sources.

Only what the locks pin is taken, so that the files stay small enough to be read.
"""

import datetime as dt
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from release.audit.advisories import ADVISORIES, Advisory
from release.audit.end_of_life import END_OF_LIFE
from release.audit.extract import COMMAND, DATA, AuditError
from release.audit.locks import LOCKS, Lock
from serving.environment import normalized

_PACKAGE = re.compile(r"^ *- purl: pkg:pypi/(\S+)$", re.MULTILINE)
_SUMMARY_CHARACTERS = 200


@dataclass(frozen=True)
class Clone:
    """A git clone, with or without files checked out, of a public repository."""

    directory: Path
    source: str
    license: str

    def header(self) -> dict[str, str]:
        """Return what an extract of it says of itself."""
        commit, seconds = self._git("log", "-1", "--format=%H %ct").decode().split()
        return {
            "source": self.source,
            "commit": commit,
            "date": str(dt.datetime.fromtimestamp(int(seconds), dt.UTC).date()),
            "license": self.license,
            "command": COMMAND,
        }

    def names(self, folder: str) -> list[str]:
        """Return what is in a folder of its newest commit. Raises AuditError without one."""
        return self._git("ls-tree", "--name-only", f"HEAD:{folder}").decode().splitlines()

    def files(self, paths: Iterable[str]) -> dict[str, str]:
        """Return files, or those in folders, of its newest commit."""
        with tarfile.open(fileobj=io.BytesIO(self._git("archive", "HEAD", "--", *paths))) as tar:
            return {
                member.name: file.read().decode()
                for member in tar
                if (file := tar.extractfile(member))
            }

    def _git(self, *arguments: str) -> bytes:
        command = ["git", "-C", str(self.directory), *arguments]
        try:
            return subprocess.run(command, capture_output=True, check=True).stdout  # noqa: S603
        except OSError as error:
            raise AuditError(f"git: cannot be run: {error.strerror}") from None
        except subprocess.CalledProcessError as failed:
            said = failed.stderr.decode().strip()
            raise AuditError(
                f"{self.directory}: expected a clone of {self.source}: {said}"
            ) from None


def write(
    advisories: Path, end_of_life: Path, locks: Sequence[Path] = LOCKS, to: Path = DATA
) -> list[Path]:
    """Write both extracts for what locks pin, and return their paths. Raises AuditError."""
    packages = sorted({name for lock in locks for name, _ in Lock.read(lock).pins})
    made = {
        ADVISORIES.name: _advisories(advisories, packages),
        END_OF_LIFE.name: _end_of_life(end_of_life, packages),
    }
    to.mkdir(parents=True, exist_ok=True)
    for name, extract in made.items():
        text = json.dumps(extract, indent=1, ensure_ascii=False, default=str)
        (to / name).write_text(f"{text}\n", encoding="utf-8")
    return [to / name for name in made]


def _advisories(directory: Path, packages: list[str]) -> dict[str, Any]:
    source = "https://github.com/pypa/advisory-database"
    clone = Clone(directory, source, "CC-BY-4.0, the PyPA advisory database's contributors")
    there = sorted(set(packages).intersection(clone.names("vulns")))
    # No path at all would mean every file.
    files = clone.files(f"vulns/{name}" for name in there) if there else {}
    by_package: dict[str, list[dict[str, Any]]] = {name: [] for name in packages}
    for path, text in sorted(files.items()):
        record = _yaml(text)
        if not record.get("withdrawn"):
            name = path.split("/")[1]
            by_package[name].append(_advisory(record, name).model_dump())
    return {**clone.header(), "packages": by_package}


def _advisory(record: dict[str, Any], package: str) -> Advisory:
    """Return what an advisory says of a package."""
    affected = [one for one in record["affected"] if normalized(one["package"]["name"]) == package]
    ranges = tuple(
        tuple(one["events"])
        for part in affected
        for one in part.get("ranges", ())
        if one["type"] == "ECOSYSTEM"
    )
    versions = {one for part in affected for one in part.get("versions", ()) if _comparable(one)}
    if not ranges and not versions:
        # It names no version that can be compared: then it is for a person to look at.
        ranges = (({"introduced": "0"},),)
    advisory = Advisory(
        id=record["id"],
        aliases=tuple(record.get("aliases", ())),
        summary=_summary(record),
        ranges=ranges,
        versions=(),
    )
    beside = sorted((one for one in versions if not advisory.affects(Version(one))), key=Version)
    return advisory.model_copy(update={"versions": tuple(beside)})


def _comparable(version: str) -> bool:
    """Say whether a lock could pin it: some from before PEP 440 are none."""
    try:
        Version(version)
    except InvalidVersion:
        return False
    return True


def _summary(record: dict[str, Any]) -> str:
    text = " ".join((record.get("summary") or record.get("details", "")).split())
    if len(text) <= _SUMMARY_CHARACTERS:
        return text
    return f"{text[:_SUMMARY_CHARACTERS].rpartition(' ')[0]} …"


def _end_of_life(directory: Path, packages: list[str]) -> dict[str, Any]:
    clone = Clone(
        directory,
        "https://github.com/endoflife-date/endoflife.date",
        "MIT, Copyright 2020 endoflife.date contributors",
    )
    files = clone.files(["products"])
    products: dict[str, Any] = dict.fromkeys(packages)
    for path, text in files.items():
        for name in {*_PACKAGE.findall(text)}.intersection(packages):
            products[name] = _cycles(path, text)
    for name in ("python", "debian"):
        path = f"products/{name}.md"
        products[name] = _cycles(path, files.get(path, ""))
    return {**clone.header(), "products": products}


def _cycles(path: str, text: str) -> list[dict[str, Any]]:
    """Return the releases that a product's page begins with, as data."""
    releases = (_yaml(text.partition("\n---\n")[0]) or {}).get("releases")
    if not releases:
        raise AuditError(f"{path}: expected releases: in the page's head, got none")
    return [
        {
            "cycle": str(one["releaseCycle"]),
            "codename": str(one.get("codename", "")).lower(),
            "until": one["eol"],
            "extended": one.get("eoes", False),
        }
        for one in releases
    ]


def _yaml(text: str) -> Any:
    import yaml  # noqa: PLC0415 - for development

    return yaml.safe_load(text)
