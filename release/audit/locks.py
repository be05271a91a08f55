"""What a lock pins, for audit.py and audit_data.py."""

from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from release.audit.extract import AuditError
from serving.environment import normalized

IN_THE_IMAGES = Path("serving", "requirements.txt")
LOCKS = (IN_THE_IMAGES, Path("requirements.txt"), Path("requirements-dev.txt"))

Pin = tuple[str, str]


@dataclass(frozen=True)
class Lock:
    """A lock. pins: (package, version). unpinned: lines that do not pin one version."""

    path: Path
    pins: frozenset[Pin]
    unpinned: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> "Lock":
        """Return what a lock pins. Raises AuditError for a file that is none."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise AuditError(f"LOCK: {path}: cannot be read: {error}") from None
        pins = {line: _pin(line) for line in _requirements(text)}
        if not pins:
            raise AuditError(f"LOCK: {path}: expected lines such as numpy==2.4.6, got none")
        return cls(
            path,
            frozenset(pin for pin in pins.values() if pin),
            tuple(line for line, pin in pins.items() if not pin),
        )

    @property
    def name(self) -> str:
        """How a person is told of it."""
        images = self.path.parts[-2:] == IN_THE_IMAGES.parts
        return f"{self.path} (in the images)" if images else str(self.path)


def _requirements(text: str) -> list[str]:
    """Return a requirements file's lines without hashes and comments."""
    lines = text.replace("\\\n", " ").splitlines()
    without = (line.partition(" #")[0].partition(" --hash")[0].strip() for line in lines)
    return [line for line in without if line and not line.startswith("#")]


def _pin(line: str) -> Pin | None:
    try:
        requirement = Requirement(line)
    except InvalidRequirement:
        return None
    version = str(requirement.specifier).removeprefix("==")
    exact = str(requirement.specifier) == f"=={version}" and not set(version) & set("*,=")
    return (normalized(requirement.name), version) if exact else None
