"""Until when Python, Debian and libraries are supported, asked of an extract of endoflife.date.

report.py asks for what the images are built from and for what the locks pin; what runs can be
asked for in the same way.
"""

import datetime as dt
from dataclasses import dataclass
from functools import cache
from typing import Literal

from pydantic import Field

from release.audit.extract import DATA, Extract, Part
from serving.environment import normalized

END_OF_LIFE = DATA / "end_of_life.json"
_SOON_DAYS = 90

State = Literal["supported", "ends soon", "ended", "no dates", "not asked"]


@dataclass(frozen=True)
class Support:
    """Whether a version of something is still supported.

    until: its last day, None where no day is named. extended: the last day of a longer, smaller
    support. "no dates" is what the source does not follow; "not asked" what the extract lacks.
    """

    product: str
    version: str
    state: State
    until: dt.date | None = None
    extended: dt.date | None = None

    @property
    def failed(self) -> bool:
        """Whether something must be done."""
        return self.state in {"ended", "not asked"}

    def __str__(self) -> str:
        """Say it in words."""
        if self.state in {"no dates", "not asked"}:
            return self.state
        ended = self.state == "ended"
        text = "past end of life" if ended else str(self.state)
        if self.until:
            text += f" {'since' if ended else 'until'} {self.until}"
        return f"{text}, extended support until {self.extended}" if self.extended else text


class Cycle(Part):
    """A line of releases, as 3.13. A date is the last day; true has ended, false has no end yet."""

    cycle: str
    codename: str
    until: dt.date | bool
    extended: dt.date | bool

    def names(self, version: str) -> bool:
        """Say whether a version, or a code name, is of this line."""
        return version == self.codename or f"{version}.".startswith(f"{self.cycle}.")


class EndOfLife(Extract):
    """The extract: lines of releases by everything it was made for; None is not followed."""

    products: dict[str, tuple[Cycle, ...] | None] = Field({})

    def support(self, product: str, version: str, today: dt.date) -> Support:
        """Say how a version is supported."""
        name = normalized(product)
        cycles = self.products.get(name)
        if name in self.products and cycles is None:
            return Support(product, version, "no dates")
        of_version = [one for one in cycles or () if one.names(version.lower())]
        if not of_version:
            return Support(product, version, "not asked")
        return _support(product, version, max(of_version, key=lambda one: len(one.cycle)), today)


def end_of_life(product: str, version: str, today: dt.date) -> Support:
    """Say how a version is supported: of "python", "debian" or a package.

    version: any that the line of releases begins, 3.13.2; Debian's may be its code name. Raises
    AuditError for an extract that is none.
    """
    return dates().support(product, version, today)


@cache
def dates() -> EndOfLife:
    """Return the extract that is kept. Raises AuditError."""
    return EndOfLife.read(END_OF_LIFE)


def _support(product: str, version: str, cycle: Cycle, today: dt.date) -> Support:
    extended = cycle.extended if isinstance(cycle.extended, dt.date) else None
    if isinstance(cycle.until, bool):
        state: State = "ended" if cycle.until else "supported"
        return Support(product, version, state, extended=extended)
    days = (cycle.until - today).days
    state = "ended" if days < 0 else "ends soon" if days <= _SOON_DAYS else "supported"
    longer = extended if extended and extended >= today else None
    return Support(product, version, state, cycle.until, longer)
