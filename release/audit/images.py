"""Check images for vulnerabilities: a scanner reads the SBOMs that `make sbom` writes."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from release.audit.check import AuditError, Check, Finding, run

_SECONDS = 600  # the first scan downloads the scanner's database
# The first scanner on PATH is used; all write SARIF. Vulnerabilities without a fix are excluded: a
# base image has dozens, and no update removes them. osv-scanner has no option to exclude them.
_SCANNERS = (
    ("grype", "--quiet", "--only-fixed", "--output=sarif", "sbom:{}"),
    ("trivy", "sbom", "--quiet", "--ignore-unfixed", "--format=sarif", "{}"),
    ("osv-scanner", "scan", "source", "--format=sarif", "--lockfile={}"),
)


def check() -> Check:
    """Check the images that have an SBOM. A missing scanner or SBOM is only a note."""
    scanner = next((command for command in _SCANNERS if shutil.which(command[0])), None)
    sboms = sorted(Path("sbom").glob("*.cdx.json"))
    if scanner is None or not sboms:
        reason = "no SBOM, `make sbom` writes them" if scanner else "no scanner installed"
        return Check([], [f"images: not checked: {reason}"], [])
    result = Check([], [f"images: {scanner[0]}, {len(sboms)} SBOMs"], [])
    for sbom in sboms:
        try:
            result.findings.extend(_scan(scanner, sbom))
        except (AuditError, ValueError, LookupError, TypeError) as error:
            result.unchecked.append(f"{scanner[0]}: {sbom}: {error}")
    return result


def _scan(scanner: Sequence[str], sbom: Path) -> list[Finding]:
    done = run([word.format(sbom) for word in scanner], _SECONDS)
    if done.returncode not in (0, 1) or not done.stdout:  # 1: vulnerabilities (osv-scanner)
        raise AuditError(f"exit status {done.returncode}: {done.stderr.strip()[-200:]}")
    results = [hit for run in json.loads(done.stdout)["runs"] for hit in run["results"] or ()]
    texts = {f"{hit['ruleId']}: {' '.join(hit['message']['text'].split())}" for hit in results}
    name = sbom.name.removesuffix(".cdx.json")
    return [Finding("image", name, text, [str(sbom)]) for text in sorted(texts)]
