"""An extract of public data, kept in data/: where it is from, how old, how it is made again.

advisories.py and end_of_life.py ask one each; refresh.py writes both.
"""

import datetime as dt
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

DATA = Path(__file__).parent / "data"
COMMAND = (
    "make audit-data ADVISORIES=<clone of github.com/pypa/advisory-database> "
    "END_OF_LIFE=<clone of github.com/endoflife-date/endoflife.date>"
)
_FRESH_DAYS = 30


class AuditError(Exception):
    """What keeps an audit from being made, for the person who asked for it."""


class Part(BaseModel):
    """A part of an extract. What it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Extract(Part):
    """What every extract says of itself.

    source: a git repository. date: of its commit, so the last day the extract knows of; None
    where there is no extract. command: makes it again.
    """

    source: str
    commit: str
    date: dt.date | None
    license: str
    command: str

    @property
    def name(self) -> str:
        """What it is called in a sentence."""
        return f"the extract of {self.date}" if self.date else "no extract"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return what a file holds, and an extract of nothing where there is none.

        Raises AuditError for a file that holds something else.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            # Every question to it has the answer "not asked".
            return cls(source="", commit="", date=None, license="", command=COMMAND)
        except ValidationError as wrong:
            first = wrong.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise AuditError(
                f"{path}: {where}: {first['msg']}. `make audit-data` writes it again."
            ) from None

    def warning(self, today: dt.date) -> str | None:
        """Return what to say of an extract that is old or not there; None for a fresh one."""
        if self.date is None:
            return f"there is no extract: {self.command} makes it."
        days = (today - self.date).days
        if days <= _FRESH_DAYS:
            return None
        return (
            f"the extract of {self.source} is {days} days old, of {self.date}: what came to be "
            "known since is not in it. `make audit-data` makes it again."
        )
