"""The software a process runs on, said in one way by training and by servers.

Used by inventory.py and by training, so that the two can be compared word for word.
"""

import platform
from importlib import metadata


def operating_system() -> str:
    """Return the distribution, or the system where it has no name, and the machine."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()
    return f"{name} ({platform.machine()})"


def packages() -> dict[str, str]:
    """Return every installed distribution with its version, by normalized name."""
    installed = {
        normalized(found.metadata["Name"]): found.version for found in metadata.distributions()
    }
    return dict(sorted(installed.items()))


def normalized(name: str) -> str:
    """Return a distribution's name as package indexes compare it (PEP 503)."""
    return name.lower().replace("_", "-").replace(".", "-")
