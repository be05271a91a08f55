"""Describe the software of this process: operating system, packages, processor features.

Training writes it into the contract and servers report it, in the same format for comparison.
"""

import os
import platform
from functools import cache
from importlib import metadata
from pathlib import Path

from artifact.contract import Environment

# The processor features that onnxruntime's kernels test (its mlas/lib/platform.cpp), by the names
# that Linux gives them on x86-64 and on ARM. They decide the last bits of a prediction.
_CPU_FEATURES = frozenset(
    {
        *("sse4_1", "avx", "avx2", "fma", "f16c", "avx_vnni"),
        *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"),
        *("amx_tile", "amx_int8", "amx_bf16"),
        *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"),
    }
)


def operating_system() -> str:
    """Return the Linux distribution and the machine; the platform on other systems."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()
    return f"{name} ({platform.machine()})"


def revision() -> str | None:
    """Return the commit that the server's image was built from, or None outside of an image."""
    return os.environ.get("IMAGE_REVISION")


@cache
def packages() -> dict[str, str]:
    """Return every installed distribution with its version, by normalized name."""
    installed: dict[str, str] = {}
    for distribution in metadata.distributions():
        # If a package is on the path twice, Python imports the first.
        name = normalized(distribution.metadata["Name"])
        installed.setdefault(name, distribution.version)
    return dict(sorted(installed.items()))


@cache
def cpu_features() -> list[str]:
    """Return the processor's features that onnxruntime uses; [] on systems without /proc."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return sorted(_CPU_FEATURES.intersection(flags.split()))


def other_versions(trained: Environment) -> dict[str, dict[str, str]]:
    """Return the versions that differ between training and this process.

    Keys are `python`, `os` and package names, values {"trained": …, "here": …}. A package that
    this process does not have is not a difference: servers do not need scikit-learn.
    """
    pairs = {
        "python": (trained.python, platform.python_version()),
        "os": (trained.os, operating_system()),
        # Not packages(): reading all installed distributions takes 0.25 s and 5 MB.
        **{name: (version, _version(name)) for name, version in trained.libraries.items()},
    }
    return {
        name: {"trained": there, "here": here}
        for name, (there, here) in pairs.items()
        if here is not None and here != there
    }


@cache
def _version(name: str) -> str | None:
    """Return the version of a distribution, or None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def normalized(name: str) -> str:
    """Return the normalized name of a distribution (PEP 503)."""
    return name.lower().replace("_", "-").replace(".", "-")
