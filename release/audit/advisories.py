"""Known vulnerabilities of Python packages, asked of an extract of PyPA's advisory database.

report.py asks for what the locks pin; what runs can be asked for in the same way. A version
that could not be asked about is a finding too: silence would pass it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from packaging.version import InvalidVersion, Version
from pydantic import Field

from release.audit.extract import DATA, Extract, Part
from serving.environment import normalized

ADVISORIES = DATA / "advisories.json"

Event = dict[Literal["introduced", "fixed", "last_affected"], str]
# The event `introduced: 0` means: from the first version on.
_FIRST = "0"


@dataclass(frozen=True)
class Finding:
    """A version with a known vulnerability, or one that could not be asked about.

    advisory: its id; None when the version was not asked about. fixed: later versions without
    it, the nearest first. summary: of the advisory, or why it was not asked.
    """

    package: str
    version: str
    advisory: str | None
    summary: str
    aliases: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()


class Advisory(Part):
    """What OSV's format says of one package: ranges of versions, and versions beside them."""

    id: str
    aliases: tuple[str, ...]
    summary: str
    ranges: tuple[tuple[Event, ...], ...]
    versions: tuple[str, ...]

    def affects(self, version: Version) -> bool:
        """Say whether it is in a range or listed."""
        listed = any(Version(one) == version for one in self.versions)
        return listed or any(_in_range(version, events) for events in self.ranges)

    def fixed_after(self, version: Version) -> tuple[str, ...]:
        """Return the later versions that fixed it, lowest first."""
        fixed = {event["fixed"] for events in self.ranges for event in events if "fixed" in event}
        return tuple(sorted((one for one in fixed if Version(one) > version), key=Version))


class Advisories(Extract):
    """The extract: advisories by every package it was made for, most have none."""

    packages: dict[str, tuple[Advisory, ...]] = Field({})

    def findings(self, package: str, version: str) -> list[Finding]:
        """Return what is wrong with one version of a package."""
        known = self.packages.get(normalized(package))
        if known is None:
            made = f"{self.name} was not made for it: {self.command}"
            why = made if self.date else "there is no extract"
            return [Finding(package, version, None, why)]
        try:
            # What is built locally, 2.1+cpu, has the vulnerabilities of 2.1.
            public = Version(Version(version).public)
        except InvalidVersion:
            return [Finding(package, version, None, "not a version that can be compared")]
        return [
            Finding(
                package, version, one.id, one.summary, one.aliases, fixed=one.fixed_after(public)
            )
            for one in known
            if one.affects(public)
        ]


def findings(packages: Mapping[str, str]) -> list[Finding]:
    """Return what is known to be wrong with versions, by package; no network is asked.

    Empty means: each was asked about, and nothing was known on the extract's date. Raises
    AuditError for an extract that is none.
    """
    extract = advisories()
    return [found for pin in packages.items() for found in extract.findings(*pin)]


@cache
def advisories() -> Advisories:
    """Return the extract that is kept. Raises AuditError."""
    return Advisories.read(ADVISORIES)


def _in_range(version: Version, events: Iterable[Event]) -> bool:
    """Follow a range's events upwards to a version (OSV's own evaluation)."""
    affected = False
    for event in sorted(events, key=_place):
        ((kind, limit),) = event.items()
        if kind == "introduced":
            affected |= limit == _FIRST or version >= Version(limit)
        elif kind == "fixed":
            affected &= version < Version(limit)
        else:
            affected &= version <= Version(limit)
    return affected


def _place(event: Event) -> tuple[bool, Version]:
    (limit,) = event.values()
    return limit != _FIRST, Version(limit)
