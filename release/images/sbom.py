"""A bill of materials (CycloneDX) of what is in an image: `make sbom`.

Asked of the image itself, by running it: what is listed is what is there.
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

# Run in the image, which has none of this module's libraries: prints the facts as JSON.
_ASK = """
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
    """Write `<image>.cdx.json` into a directory, and return its path. Raises DockerError."""
    options = ("--rm", "--pull=never", "--network=none", "--entrypoint=python")
    facts = json.loads(docker("run", *options, image, "-c", _ASK))
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
    system, version = facts["os"]["ID"], facts["os"].get("VERSION_ID")
    components = [
        Component(name=system, version=version, type=ComponentType.OPERATING_SYSTEM),
        _package("generic", "python", facts["python"]),
        *(_package("pypi", *package) for package in facts["python_packages"]),
        *(
            # Without the distribution, osv-scanner does not know whose advisories to read.
            _package("deb", *package, system, distro=f"{system}-{version}")
            for package in _debian(facts["debian_packages"])
        ),
    ]
    return [*components, _model(facts["contract"])] if facts["contract"] else components


def _debian(status: str) -> list[tuple[str, str]]:
    """Return the installed packages of dpkg's record, which is written like mail headers."""
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
