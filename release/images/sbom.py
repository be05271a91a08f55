"""Write a software bill of materials (SBOM) of an image in CycloneDX format: `make sbom`.

The facts are collected inside a container of the image, so the SBOM lists the software that is
installed there, not the software that a lock file names.
"""

import json
from email import message_from_string
from pathlib import Path
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from release.images.docker import docker

# Runs inside the image, so it imports the standard library only. Prints the facts as JSON.
_FACTS_SCRIPT = """
import json, os, platform
from importlib import metadata
from pathlib import Path

directory = os.environ.get("MODEL_DIR")
print(json.dumps({
    "os": platform.freedesktop_os_release(),
    "python": platform.python_version(),
    "python_packages": [[d.metadata["Name"], d.version] for d in metadata.distributions()],
    "debian_packages": Path("/var/lib/dpkg/status").read_text(),
    "contract": json.loads(Path(directory, "contract.json").read_text()) if directory else None,
}))
"""


def write(image: str, directory: Path) -> Path:
    """Write the SBOM to `<image>.cdx.json` in a directory; return its path. Raises DockerError."""
    options = ("--rm", "--pull=never", "--network=none", "--entrypoint=python")
    facts = json.loads(docker("run", *options, image, "-c", _FACTS_SCRIPT))
    name, _, version = image.rpartition(":")
    container = Component(name=name, version=version, type=ComponentType.CONTAINER)
    bom = Bom(components=_components(facts))
    bom.metadata.component = container
    bom.register_dependency(container, bom.components)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{image.replace('/', '_').replace(':', '_')}.cdx.json"
    path.write_text(JsonV1Dot6(bom).output_as_string(indent=2), encoding="utf-8")
    return path


def _components(facts: dict[str, Any]) -> list[Component]:
    """Return a component for the system, for Python, for each package, and for the model."""
    system, version = facts["os"]["ID"], facts["os"].get("VERSION_ID")
    components = [
        Component(name=system, version=version, type=ComponentType.OPERATING_SYSTEM),
        _package("generic", "python", facts["python"]),
        *(_package("pypi", *package) for package in facts["python_packages"]),
        *(
            # osv-scanner needs the qualifier `distro` to choose the advisories of this release.
            _package("deb", *package, system, distro=f"{system}-{version}")
            for package in _debian_packages(facts["debian_packages"])
        ),
    ]
    return [*components, _model(facts["contract"])] if facts["contract"] else components


def _debian_packages(status: str) -> list[tuple[str, str]]:
    """Return name and version of the installed packages in dpkg's status file."""
    # The file has one paragraph for each package, in the format of mail headers.
    records = map(message_from_string, status.strip().split("\n\n"))
    return [
        (record["Package"], record["Version"])
        for record in records
        if record["Status"] == "install ok installed"
    ]


def _package(
    kind: str, name: str, version: str, namespace: str | None = None, **qualifiers: str
) -> Component:
    purl = PackageURL(kind, namespace, name, version, qualifiers)
    return Component(name=name, version=version, purl=purl, bom_ref=purl.to_string())


def _model(contract: dict[str, Any]) -> Component:
    return Component(
        name=contract["name"],
        version=contract["version"],
        description=contract["purpose"],
        type=ComponentType.MACHINE_LEARNING_MODEL,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=contract["model"]["sha256"])],
    )
