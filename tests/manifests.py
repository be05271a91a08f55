"""Rendering k8s/ for one release, as kustomize does, and finding one's way in what comes out.

Used by test_manifests.py, which looks at what is applied, never at single files of k8s/.
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
from release.kubernetes.manifests import Manifests, Track, kustomize
from serving.settings import Mode
from tests.fakes import unavailable

ROOT = Path(__file__).parent.parent
K8S = ROOT / "k8s"
IRIS = ROOT / "tests" / "contracts" / "format-1-iris.json"
CANARY = "components/canary"
# Settings that say where, and which, the model is.
MODEL_SETTINGS = ("MODEL_URI", "MODEL_DIR")

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Release:
    """A model's version with its image; each value tells whose it is."""

    version: str
    hexadecimal: str
    model: str = "iris"

    @property
    def sha256(self) -> str:
        """Of its contract, of its server's image and of its model's image alike."""
        return self.hexadecimal * 64


# The version that k8s/ itself names, so that what a release forgets to fill in is a trace of it.
A = Release("1", "a")
B = Release("2", "b")


def _kustomizations() -> dict[str, dict[str, Any]]:
    """Every kustomization of k8s/ by its folder."""
    return {
        file.parent.relative_to(K8S).as_posix(): yaml.safe_load(file.read_text(encoding="utf-8"))
        for file in sorted(K8S.rglob("kustomization.yaml"))
    }


def _used(folder: str, kustomization: Object) -> set[str]:
    """The folders that a kustomization is made of."""
    paths = [*kustomization.get("resources", ()), *kustomization.get("components", ())]
    return {Path(os.path.normpath(Path(folder) / path)).as_posix() for path in paths}


def _tops(kind: str) -> list[str]:
    """The folders of a kind that nothing else is made of."""
    every = _kustomizations()
    used = set().union(*(_used(folder, one) for folder, one in every.items()))
    return [folder for folder, one in every.items() if one["kind"] == kind and folder not in used]


# For clusters that have KServe, whose schemas are not Kubernetes's.
KSERVE = "kserve"
OVERLAYS = [folder for folder in _tops("Kustomization") if folder != KSERVE]
# The others are what the releases share.
SERVERS = [overlay for overlay in OVERLAYS if overlay.partition("/")[0] in get_args(Mode)]
COMPONENTS = _tops("Component")
COMBINATIONS = [
    chosen
    for count in range(len(COMPONENTS) + 1)
    for chosen in itertools.combinations(COMPONENTS, count)
]


@functools.cache
def render(overlay: str, components: tuple[str, ...] = (), release: Release = A) -> list[Object]:
    """Return the objects of a release; not to be changed, they are rendered once."""
    if shutil.which("kubectl") is None:
        unavailable("needs kubectl")
    if overlay not in SERVERS:
        parts = {"resources": [overlay], "components": components}
        return list(yaml.safe_load_all(kustomize({"namespace": "models", **parts})))
    track: Track = "canary" if CANARY in components else "stable"
    return list(yaml.safe_load_all(_manifests(overlay, release).render(track)))


def _manifests(overlay: str, release: Release) -> Manifests:
    contract = parse_contract(IRIS.read_text(encoding="utf-8"), "iris")
    where = {"bucket": "s3://bucket/models", "image_volume": f"model@sha256:{release.sha256}"}
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
        where=where.get(source),
    )


def mode_of(overlay: str) -> Mode:
    """Return the release mode of an overlay, which is the folder that it is in."""
    return overlay.partition("/")[0]  # type: ignore[return-value]


def of_kind(objects: list[Object], kind: str) -> list[Any]:
    """Return the objects of a kind."""
    return [one for one in objects if one["kind"] == kind]


def only(objects: list[Object], kind: str) -> Any:
    """Return the one object of a kind."""
    (one,) = of_kind(objects, kind)
    return one


def pod_of(objects: list[Object]) -> Any:
    """Return the spec of the Deployment's pods."""
    return only(objects, "Deployment")["spec"]["template"]["spec"]


def containers(pod: Object) -> list[Any]:
    """Return all containers of a pod, those included that run before the server."""
    return [
        container
        for kind in ("initContainers", "containers", "ephemeralContainers")
        for container in pod.get(kind, ())
    ]


def server_of(pod: Object) -> Any:
    """Return the server's container."""
    return named(pod["containers"], "server")


def named(things: list[Any], name: str) -> Any:
    """Return the one of that name."""
    (thing,) = [thing for thing in things if thing["name"] == name]
    return thing


def variables(container: Object) -> dict[str, Any]:
    """Return a container's environment, each variable with where its value comes from."""
    return {one["name"]: one for one in container.get("env", ())}


def environment(template: Object, container: Object) -> dict[str, str]:
    """Return a container's environment as the kubelet makes it."""
    made = {}
    for name, one in variables(container).items():
        source = one.get("valueFrom", {})
        if "fieldRef" in source:
            path = re.fullmatch(r"metadata\.annotations\['(.+)'\]", source["fieldRef"]["fieldPath"])
            assert path, source
            made[name] = template["metadata"]["annotations"][path[1]]
        elif "resourceFieldRef" in source:
            field = source["resourceFieldRef"]
            of = named(template["spec"]["containers"], field["containerName"])
            kind, resource = field["resource"].split(".")
            # The default divisor is one whole unit, rounded up.
            made[name] = str(math.ceil(quantity(of["resources"][kind][resource])))
        else:
            made[name] = one["value"]
    return made


def quantity(written: str | int) -> Decimal:
    """Return what a quantity of Kubernetes is, such as 250m or 192Mi."""
    units = {"m": Decimal("0.001"), "": Decimal(1), "k": Decimal(1000)}
    for power, unit in enumerate("KMGT", start=1):
        units |= {unit: Decimal(1000**power), f"{unit}i": Decimal(1024**power)}
    number = str(written).rstrip("mkKMGTi")
    return Decimal(number) * units[str(written).removeprefix(number)]


def mounted(container: Object, path: str) -> tuple[Any, str] | None:
    """Return the mount that a path lies in, and the path within its volume."""
    for mount in container.get("volumeMounts", ()):
        if Path(path).is_relative_to(mount["mountPath"]):
            return mount, Path(path).relative_to(mount["mountPath"]).as_posix()
    return None


def keys(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the way to each field of an object."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield (*path, key)
            yield from keys(value, (*path, key))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from keys(value, (*path, number))
