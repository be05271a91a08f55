"""What is locked against known vulnerabilities and ends of life: `make audit`.

Vulnerabilities are asked of pip-audit where it is installed and the network allows, else of
advisories.py's extract; ends of life of end_of_life.py's. What neither can be asked about
fails as a finding does.
"""

import datetime as dt
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from release.audit import pip_audit
from release.audit.advisories import Finding, advisories, findings
from release.audit.end_of_life import Support, dates, end_of_life
from release.audit.extract import AuditError
from release.audit.locks import LOCKS, Lock, Pin

DOCKERFILES = (Path("Dockerfile.model_in_image"), Path("Dockerfile.model_load"))
_FEW = 5
_BASE_IMAGE = re.compile(
    r"^ARG BASE_IMAGE=(?:\S+/)?python:(?P<python>\d[\d.]*)(?:-slim)?-(?P<debian>[a-z]+)(?:@\S+)?$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Vulnerability:
    """A finding, and the locks that pin it."""

    finding: Finding
    locks: list[str]


@dataclass(frozen=True)
class Lifetime:
    """How something is supported, and what it is in."""

    support: Support
    where: list[str]


@dataclass(frozen=True)
class Audit:
    """What was found on a day. asked: of whom. warnings: of extracts that are old."""

    date: dt.date
    asked: list[str]
    vulnerabilities: list[Vulnerability]
    lifetimes: list[Lifetime]
    warnings: list[str]

    @classmethod
    def of(
        cls,
        locks: Sequence[Path] = LOCKS,
        dockerfiles: Sequence[Path] = DOCKERFILES,
        today: dt.date | None = None,
    ) -> "Audit":
        """Audit what locks pin and what images are built from. Raises AuditError."""
        day = today or dt.datetime.now(dt.UTC).date()
        read = [Lock.read(path) for path in locks]
        found, asked = _of_pins({pin for lock in read for pin in lock.pins})
        vulnerabilities = [
            *(Vulnerability(one, _pinning(read, one.package, one.version)) for one in found),
            *(
                Vulnerability(_unpinned(line), [lock.name])
                for lock in read
                for line in lock.unpinned
            ),
        ]
        vulnerabilities.sort(key=lambda one: "(in the images)" not in " ".join(one.locks))
        extracts = (advisories(), dates())
        return cls(
            day,
            [*asked, f"ends of life: {dates().name}"],
            vulnerabilities,
            list(_lifetimes(read, dockerfiles, day)),
            [said for extract in extracts if (said := extract.warning(day))],
        )

    @property
    def failed(self) -> bool:
        """Whether anything was found, or could not be asked."""
        ended = any(one.support.failed for one in self.lifetimes)
        # An old extract has not been asked of what came since.
        return bool(self.vulnerabilities or self.warnings) or ended


def as_json(audit: Audit) -> str:
    """Return all of it."""
    return json.dumps({"failed": audit.failed, **asdict(audit)}, indent=2, default=str)


def show(audit: Audit) -> None:
    """Print what was found, whom it was asked of, and the verdict."""
    console = Console(highlight=False)
    known = [one for one in audit.vulnerabilities if one.finding.advisory is not None]
    rows = [*map(_vulnerability, known), *_not_asked(audit.vulnerabilities)]
    if rows:
        console.print(_table("package", "version", "advisory", "fixed in", "in", rows=rows))
    dated = [one for one in audit.lifetimes if one.support.state not in ("no dates", "not asked")]
    unasked = [one.support for one in audit.lifetimes if one.support.state == "not asked"]
    lines = [*map(_lifetime, dated), *([_lifetimes_not_asked(unasked)] if unasked else [])]
    if lines:
        console.print(_table("of", "version", "support", "in", rows=lines))
    console.print("\n".join(_closing(audit)), soft_wrap=True, markup=False)


FORMATS: dict[str, Callable[[Audit], str]] = {"json": as_json}


def _of_pins(pins: set[Pin]) -> tuple[list[Finding], list[str]]:
    """Return findings, and who was asked for how many of the pins."""
    found: list[Finding] = []
    silences: list[str] = []
    answered = 0
    for packages in _rounds(pins):
        answer = pip_audit.ask(packages)
        rest = {name: version for name, version in packages.items() if name not in answer.findings}
        found += [one for name in packages for one in answer.findings.get(name, ())]
        found += findings(rest)
        answered += len(packages) - len(rest)
        silences += [answer.silence] if rest else []
    asked = []
    if answered:
        asked.append(f"vulnerabilities: pip-audit, for {answered} of {len(pins)} packages")
    if silences:
        asked.append(
            f"vulnerabilities: {advisories().name}, for {len(pins) - answered} of "
            f"{len(pins)} packages (pip-audit: {silences[0]})"
        )
    return found, asked


def _rounds(pins: set[Pin]) -> Iterator[dict[str, str]]:
    """Yield all pins, each package once a round: locks may pin more than one version."""
    while pins:
        packages = dict(sorted(pins))
        yield packages
        pins = pins - set(packages.items())


def _pinning(locks: Iterable[Lock], package: str, version: str) -> list[str]:
    return [lock.name for lock in locks if (package, version) in lock.pins]


def _unpinned(line: str) -> Finding:
    return Finding(line, "", None, "expected package==version, one version and no range")


def _lifetimes(
    locks: list[Lock], dockerfiles: Sequence[Path], today: dt.date
) -> Iterator[Lifetime]:
    bases: dict[Pin, list[str]] = {}
    for path in dockerfiles:
        for base in _base(path).items():
            bases.setdefault(base, []).append(str(path))
    for base, where in sorted(bases.items(), reverse=True):
        yield Lifetime(end_of_life(*base, today), where)
    for pin in sorted({pin for lock in locks for pin in lock.pins}):
        yield Lifetime(end_of_life(*pin, today), _pinning(locks, *pin))


def _base(dockerfile: Path) -> dict[str, str]:
    """Return the Python and the Debian that an image is built on."""
    try:
        base = _BASE_IMAGE.search(dockerfile.read_text(encoding="utf-8"))
    except OSError as error:
        raise AuditError(f"{dockerfile}: cannot be read: {error.strerror}") from None
    if base is None:
        raise AuditError(
            f"{dockerfile}: expected ARG BASE_IMAGE=python:<version>-slim-<Debian's code name>, "
            "else nobody can say until when it is supported"
        )
    return base.groupdict()


def _table(*columns: str, rows: Iterable[Sequence[str]]) -> Table:
    table = Table(show_lines=True)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _vulnerability(one: Vulnerability) -> Sequence[str]:
    found = one.finding
    advisory = " ".join((str(found.advisory), *found.aliases))
    fixed = ", ".join(found.fixed) or "no version"
    return found.package, found.version, advisory, fixed, "\n".join(one.locks)


def _not_asked(some: Iterable[Vulnerability]) -> Iterator[Sequence[str]]:
    """Yield one row a reason: without an extract it is the same for every package."""
    reasons: dict[str, list[Vulnerability]] = {}
    for one in some:
        if one.finding.advisory is None:
            reasons.setdefault(one.finding.summary, []).append(one)
    for why, those in reasons.items():
        packages = _few([f"{one.finding.package} {one.finding.version}" for one in those])
        where = "\n".join(sorted({lock for one in those for lock in one.locks}))
        yield packages, "", f"not asked: {why}", "", where


def _lifetimes_not_asked(some: Sequence[Support]) -> Sequence[str]:
    return _few([f"{one.product} {one.version}" for one in some]), "", "not asked", ""


def _few(names: list[str]) -> str:
    """Return some names, or how many they are."""
    return ", ".join(names).strip() if len(names) <= _FEW else f"{len(names)} of what is locked"


def _lifetime(one: Lifetime) -> Sequence[str]:
    return one.support.product, one.support.version, str(one.support), "\n".join(one.where)


def _closing(audit: Audit) -> Iterator[str]:
    """Yield who was asked, what they do not follow, and the verdict."""
    yield from audit.asked
    unfollowed = [one for one in audit.lifetimes if one.support.state == "no dates"]
    if unfollowed:
        yield f"endoflife.date has no dates for {len(unfollowed)} packages; FORMAT=json names them"
    yield from dict.fromkeys(f"warning: {said}" for said in audit.warnings)
    unasked = [one for one in audit.vulnerabilities if one.finding.advisory is None]
    states = [one.support.state for one in audit.lifetimes]
    counts = {
        "vulnerabilities": len(audit.vulnerabilities) - len(unasked),
        "past end of life": states.count("ended"),
        "not asked": len(unasked) + states.count("not asked"),
    }
    found = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
    yield f"found: {found or 'nothing'}"
