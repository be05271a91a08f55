"""Check end-of-life dates of Python, Debian, Kubernetes, and NumPy with endoflife.date.

If that service fails, the dates of TABLE are used and the check is reported as incomplete.
"""

import datetime as dt
import os
from collections.abc import Mapping
from typing import Any

import httpx

from release.audit.check import Check, Finding, Pins

_REQUEST_SECONDS = 5
_WRONG_FORMAT = (ValueError, LookupError, TypeError, AttributeError)  # from unexpected JSON

# The last day of support by release, copied from endoflife.date on TABLE_DATE. Each comment has the
# source that endoflife.date cites. Of the locked libraries it knows NumPy only.
TABLE_DATE = "2026-08-22"
TABLE = {
    # https://devguide.python.org/versions/
    "python": {"3.10": "2026-10-31", "3.11": "2027-10-31", "3.12": "2028-10-31",
               "3.13": "2029-10-31", "3.14": "2030-10-31"},
    # https://wiki.debian.org/DebianReleases, without long-term support
    "debian": {"11": "2024-08-14", "12": "2026-07-11", "13": "2028-08-09",
               "bullseye": "2024-08-14", "bookworm": "2026-07-11", "trixie": "2028-08-09"},
    # https://kubernetes.io/releases/patch-releases/
    "kubernetes": {"1.33": "2026-06-28", "1.34": "2026-10-27", "1.35": "2027-02-28",
                   "1.36": "2027-06-28"},
    # https://numpy.org/neps/nep-0029-deprecation_policy.html
    "numpy": {"2.2": "2026-12-09", "2.3": "2027-06-08", "2.4": "2027-12-21", "2.5": "2028-06-22"},
}  # fmt: skip


def check(platforms: Pins, packages: Pins) -> Check:
    """Check platforms and packages. ENDOFLIFE_URL in the environment replaces the service's URL."""
    url = os.environ.get("ENDOFLIFE_URL", "https://endoflife.date/api/v1")
    libraries = {pin: where for pin, where in packages.items() if pin[0] == "numpy"}
    versions = {**platforms, **libraries}
    try:
        days = {product: _fetch(url, product) for product in {name for name, _ in versions}}
        return _check(versions, days, url)
    except (httpx.HTTPError, httpx.InvalidURL, *_WRONG_FORMAT) as error:
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
    result = _check(versions, TABLE, f"the table of {TABLE_DATE} in release/audit/end_of_life.py")
    result.unchecked.append(f"{url}: no usable response: {problem}")
    return result


def _fetch(url: str, product: str) -> dict[str, str]:
    """Return the last day of support by release and by code name, as in TABLE."""
    page = f"{url}/products/{product}/"
    response = httpx.get(page, timeout=_REQUEST_SECONDS, follow_redirects=True).raise_for_status()
    releases = response.json()["result"]["releases"]
    ends = {release["name"]: _last_day(release) for release in releases}
    return ends | {str(release["codename"]).lower(): _last_day(release) for release in releases}


def _last_day(release: dict[str, Any]) -> str:
    unannounced = "0001-01-01" if release["isEol"] else "9999-12-31"
    return str(dt.date.fromisoformat(release["eolFrom"] or unannounced))


def _check(versions: Pins, days: Mapping[str, Mapping[str, str]], source: str) -> Check:
    result = Check([], [], [])
    today = str(dt.datetime.now(dt.UTC).date())
    for (product, version), where in versions.items():
        releases = [name for name in days[product] if f"{version}.".startswith(f"{name}.")]
        if not releases:
            result.unchecked.append(f"{source}: no date of {product} {version}")
        elif (day := days[product][releases[0]]) < today:
            problem = f"past end of life since {day}, source: {source}"
            result.findings.append(Finding(product, version, problem, where))
        else:
            result.notes.append(f"{product} {version}: supported until {day}, source: {source}")
    return result
