"""The software a process runs on, said in one way by training and by servers.

Used by inventory.py and by training, so that the two can be compared word for word.
"""

import os
import platform
from functools import cache
from importlib import metadata
from pathlib import Path

from artifact.contract import Environment

# What onnxruntime's kernels ask the processor for (its mlas/lib/platform.cpp), as Linux
# names it on x86-64 and on ARM.
_CPU_FEATURES = frozenset(
    {
        *("sse4_1", "avx", "avx2", "fma", "f16c", "avx_vnni"),
        *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"),
        *("amx_tile", "amx_int8", "amx_bf16"),
        *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"),
    }
)


def operating_system() -> str:
    """Return the distribution, or the system where it has no name, and the machine."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()
    return f"{name} ({platform.machine()})"


def revision() -> str | None:
    """Return the commit that the server's image was built from; None outside of an image."""
    return os.environ.get("IMAGE_REVISION")


@cache
def packages() -> dict[str, str]:
    """Return every installed distribution with its version, by normalized name."""
    installed: dict[str, str] = {}
    for found in metadata.distributions():
        # The first on the path is the one that is imported.
        installed.setdefault(normalized(found.metadata["Name"]), found.version)
    return dict(sorted(installed.items()))


@cache
def cpu_features() -> list[str]:
    """Return what this processor has of what onnxruntime makes use of; [] where none is known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return sorted(_CPU_FEATURES.intersection(flags.split()))


def other_versions(trained: Environment) -> dict[str, dict[str, str]]:
    """Return every version that training had and this process has otherwise.

    By `python`, `os` or the package: {"trained": …, "here": …}. What only one of them has
    is no difference: a server needs no scikit-learn.
    """
    pairs = {
        "python": (trained.python, platform.python_version()),
        "os": (trained.os, operating_system()),
        # Not packages(): to read of all that is installed takes a quarter of a second and 5 MB.
        **{name: (version, _version(name)) for name, version in trained.libraries.items()},
    }
    return {
        name: {"trained": there, "here": here}
        for name, (there, here) in pairs.items()
        if here is not None and here != there
    }


@cache
def _version(name: str) -> str | None:
    """Return the version of an installed distribution, None where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def normalized(name: str) -> str:
    """Return a distribution's name as package indexes compare it (PEP 503)."""
    return name.lower().replace("_", "-").replace(".", "-")
