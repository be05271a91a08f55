"""Render k8s/ for a release with kustomize, and find objects and fields in the result.

Tests check the rendered objects, never single files of k8s/.
"""

import functools
import itertools
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import yaml

from artifact.contract import parse_contract
from release.kubernetes.deployment_name import TrackName
from release.kubernetes.manifests import Manifests, kustomize
from serving.settings import Mode
from tests.fakes import unavailable

ROOT = Path(__file__).parent.parent
K8S = ROOT / "k8s"
IRIS = ROOT / "tests" / "contracts" / "format-1-iris.json"
CANARY = "components/canary"
# Settings that name the model and its location.
MODEL_SETTINGS = ("MODEL_URI", "MODEL_DIR")

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Release:
    """A release whose values can be recognised in rendered manifests."""

    version: str
    hexadecimal: str
    model: str = "iris"

    @property
    def sha256(self) -> str:
        """The sha256 of its contract, of its server image, and of its model image."""
        return self.hexadecimal * 64


# The version in the examples of k8s/. A value of A in a rendering of B was not replaced.
A = Release("1", "a")
B = Release("2", "b")


def _kustomizations() -> dict[str, dict[str, Any]]:
    """Return every kustomization of k8s/ by its folder."""
    return {
        file.parent.relative_to(K8S).as_posix(): yaml.safe_load(file.read_text(encoding="utf-8"))
        for file in sorted(K8S.rglob("kustomization.yaml"))
    }


def _used(folder: str, kustomization: Object) -> set[str]:
    """Return the folders that a kustomization includes."""
    paths = [*kustomization.get("resources", ()), *kustomization.get("components", ())]
    return {Path(os.path.normpath(Path(folder) / path)).as_posix() for path in paths}


def _tops(kind: str) -> list[str]:
    """Return the folders of a kind that no other kustomization includes."""
    kustomizations = _kustomizations()
    used = set().union(*(_used(folder, content) for folder, content in kustomizations.items()))
    return [
        folder
        for folder, content in kustomizations.items()
        if content["kind"] == kind and folder not in used
    ]


# For clusters with KServe. Its objects are not in the schemas of Kubernetes.
KSERVE = "kserve"
OVERLAYS = [folder for folder in _tops("Kustomization") if folder != KSERVE]
# Overlays of a server; the others contain shared objects.
SERVERS = [overlay for overlay in OVERLAYS if overlay.partition("/")[0] in get_args(Mode)]
COMPONENTS = _tops("Component")
COMBINATIONS = [
    combination
    for count in range(len(COMPONENTS) + 1)
    for combination in itertools.combinations(COMPONENTS, count)
]


@functools.cache
def render(overlay: str, components: tuple[str, ...] = (), release: Release = A) -> list[Object]:
    """Return the objects of a release. Cached, so tests must not change them."""
    if shutil.which("kubectl") is None:
        unavailable("needs kubectl")
    if overlay not in SERVERS:
        parts = {"resources": [overlay], "components": components}
        return list(yaml.safe_load_all(kustomize({"namespace": "models", **parts})))
    track: TrackName = "canary" if CANARY in components else "stable"
    return list(manifests_of(overlay, release).render(track).objects)


@functools.cache
def render_folder(folder: str) -> list[Object]:
    """Return the objects of a folder of k8s/ as `kubectl apply -k` applies them."""
    if shutil.which("kubectl") is None:
        unavailable("needs kubectl")
    return list(yaml.safe_load_all(kustomize({"resources": [folder]})))


def manifests_of(overlay: str, release: Release) -> Manifests:
    """Return the manifests of a release with an overlay of k8s/."""
    if shutil.which("kubectl") is None:
        unavailable("needs kubectl")
    contract = parse_contract(IRIS.read_text(encoding="utf-8"), "iris")
    locations = {"bucket": "s3://bucket/models", "image_volume": f"model@sha256:{release.sha256}"}
    _, _, source = overlay.partition("/")
    return Manifests(
        mode=mode_of(overlay),
        namespace="models",
        contract=contract.model_copy(update={"name": release.model, "version": release.version}),
        contract_sha256=release.sha256,
        image=f"{mode_of(overlay)}@sha256:{release.sha256}",
        image_id=f"sha256:{release.sha256}",
        path=f"models/{release.model}/{release.version}",
        source=source or None,  # type: ignore[arg-type]
        location=locations.get(source),
    )


def mode_of(overlay: str) -> Mode:
    """Return the release mode of an overlay: its first folder."""
    return overlay.partition("/")[0]  # type: ignore[return-value]


def of_kind(objects: list[Object], kind: str) -> list[Any]:
    """Return the objects of a kind."""
    return [item for item in objects if item["kind"] == kind]


def only(objects: list[Object], kind: str) -> Any:
    """Return the only object of a kind."""
    (item,) = of_kind(objects, kind)
    return item


def pod_of(objects: list[Object]) -> Any:
    """Return the spec of the Deployment's pods."""
    return only(objects, "Deployment")["spec"]["template"]["spec"]


def containers(pod: Object) -> list[Any]:
    """Return all containers of a pod, including init containers."""
    return [
        container
        for kind in ("initContainers", "containers", "ephemeralContainers")
        for container in pod.get(kind, ())
    ]


def server_of(pod: Object) -> Any:
    """Return the server's container."""
    return named(pod["containers"], "server")


def named(items: list[Any], name: str) -> Any:
    """Return the item with a name."""
    (match,) = [item for item in items if item["name"] == name]
    return match


def variables(container: Object) -> dict[str, Any]:
    """Return the entries of a container's `env` by name."""
    return {entry["name"]: entry for entry in container.get("env", ())}


def environment(template: Object, container: Object) -> dict[str, str]:
    """Return a container's environment as the kubelet resolves it."""
    values = {}
    for name, entry in variables(container).items():
        source = entry.get("valueFrom", {})
        if "fieldRef" in source:
            path = re.fullmatch(r"metadata\.annotations\['(.+)'\]", source["fieldRef"]["fieldPath"])
            assert path, source
            values[name] = template["metadata"]["annotations"][path[1]]
        elif "resourceFieldRef" in source:
            field = source["resourceFieldRef"]
            referenced = named(template["spec"]["containers"], field["containerName"])
            kind, resource = field["resource"].split(".")
            # The default divisor is 1, and Kubernetes rounds up.
            values[name] = str(math.ceil(quantity(referenced["resources"][kind][resource])))
        else:
            values[name] = entry["value"]
    return values


def quantity(text: str | int) -> Decimal:
    """Return the value of a Kubernetes quantity such as 250m or 192Mi."""
    units = {"m": Decimal("0.001"), "": Decimal(1), "k": Decimal(1000)}
    for power, unit in enumerate("KMGT", start=1):
        units |= {unit: Decimal(1000**power), f"{unit}i": Decimal(1024**power)}
    number = str(text).rstrip("mkKMGTi")
    return Decimal(number) * units[str(text).removeprefix(number)]


def mounted(container: Object, path: str) -> tuple[Any, str] | None:
    """Return the mount that contains a path, and the path within its volume."""
    for mount in container.get("volumeMounts", ()):
        if Path(path).is_relative_to(mount["mountPath"]):
            return mount, Path(path).relative_to(mount["mountPath"]).as_posix()
    return None


def keys(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path to each field of an object."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield (*path, key)
            yield from keys(value, (*path, key))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from keys(value, (*path, number))
