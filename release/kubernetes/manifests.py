"""Render the manifests of a release: k8s/ with its image, its model, and its contract.

This module writes the kustomization.yaml that a person would write for one release. kustomize
makes the objects from it and from k8s/.
"""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from artifact.contract import Contract
from release.kubernetes.annotations import (
    CONTRACT_SHA256,
    IMAGE_ID,
    MODEL,
    SOURCE,
    with_former_names,
)
from release.kubernetes.deployment_name import TrackName, deployment_name, mode_suffix
from release.kubernetes.kubectl import kubectl
from release.kubernetes.resources import set_resources
from serving.settings import Mode

ROOT = Path(__file__).parent.parent.parent / "k8s"
Source = Literal["volume", "bucket", "image_volume"]
SOURCES: tuple[Source, ...] = ("volume", "bucket", "image_volume")

# The model's version. Not in a selector: selectors are immutable.
VERSION_LABEL = "app.kubernetes.io/version"

# Where k8s/model_load/volume mounts the store and k8s/model_load/image_volume the model's image.
_STORE_MOUNT, _IMAGE_MOUNT = "/store", "/image"
_RENDER_SECONDS = 60


class Rendered(NamedTuple):
    """The objects of one track."""

    objects: list[dict[str, Any]]
    # The memory and disk of a server and the origin of each value, one line each.
    resources: list[str]


@dataclass(frozen=True)
class Manifests:
    """A release of a model in a mode, and how to render it for Kubernetes."""

    mode: Mode
    namespace: str
    contract: Contract
    contract_sha256: str
    # The server's image: by digest, or by a tag that never moves.
    image: str
    # The image's ID in the Docker engine.
    image_id: str
    # The path of the model inside the model's own image (SOURCE=image_volume).
    path: str
    # None in MODE=model_in_image.
    source: Source | None = None
    # The bucket, or the model's own image.
    location: str | None = None
    # The name of the model's deployment in the cluster; None: the name for a new deployment.
    existing_name: str | None = None
    # MEMORY=, the memory of a server; None: from k8s/ or computed.
    memory: str | None = None

    @property
    def deployment(self) -> str:
        """The name of the deployment, such as `iris-model-load`."""
        return self.existing_name or deployment_name(self.contract.name, self.mode)

    @property
    def model(self) -> str:
        """The model, such as `iris/1`."""
        return f"{self.contract.name}/{self.contract.version}"

    @property
    def release(self) -> tuple[str, str]:
        """The release: its image's ID and its contract's sha256."""
        return self.image_id, self.contract_sha256

    def render(self, track: TrackName) -> Rendered:
        """Return the objects of a track. Raises ClusterError if kustomize fails."""
        objects = list(yaml.safe_load_all(kustomize(self.kustomization(track))))
        (deployment,) = (item for item in objects if item["kind"] == "Deployment")
        size_bytes = self.contract.model.size_bytes
        resources = set_resources(deployment, size_bytes, self.memory, f"k8s/{self._overlay}")
        return Rendered(objects, resources)

    def kustomization(self, track: TrackName) -> dict[str, Any]:
        """Return the kustomization of a track; its paths are relative to k8s/."""
        version = {VERSION_LABEL: self.contract.version}
        patch = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "any", "labels": version},
            "spec": {"template": self._template(version)},
        }
        volume = {"kind": "PersistentVolume", "path": "metadata/name"}
        return {
            "namespace": self.namespace,
            "namePrefix": f"{self._name_without_mode}-",
            "resources": [self._overlay],
            "components": ["components/canary"] if track == "canary" else [],
            "images": [{"name": self.mode, **_image(self.image)}],
            "labels": [
                {
                    "pairs": {"app.kubernetes.io/instance": self.deployment},
                    "includeSelectors": True,
                },
                {"pairs": {"app.kubernetes.io/managed-by": "inference"}},
            ],
            "patches": [{"target": {"kind": "Deployment"}, "patch": json.dumps(patch)}],
            "transformers": [
                json.dumps(
                    {
                        "apiVersion": "builtin",
                        "kind": "PrefixSuffixTransformer",
                        "metadata": {"name": "namespace"},
                        "prefix": self._volume_prefix,
                        "fieldSpecs": [volume],
                    }
                )
            ],
        }

    @property
    def _overlay(self) -> str:
        return f"{self.mode}/{self.source}" if self.source else self.mode

    @property
    def _name_without_mode(self) -> str:
        return self.deployment.removesuffix(mode_suffix(self.mode))

    @property
    def _volume_prefix(self) -> str:
        """The namespace, because volumes belong to the whole cluster, and a separator.

        With a dash, model `c` in namespace `a-b` and model `b-c` in namespace `a` would share a
        volume. No namespace contains a dot. If neither name contains a dash, the separator stays
        the dash of earlier versions: the volume of a claim cannot be changed.
        """
        separator = "." if "-" in self.namespace + self._name_without_mode else "-"
        return f"{self.namespace}{separator}"

    def _template(self, labels: dict[str, str]) -> dict[str, Any]:
        server: dict[str, Any] = {"name": "server"}
        spec: dict[str, Any] = {"containers": [server]}
        match self.source:
            case "image_volume":
                server["env"] = [_variable("MODEL_DIR", f"{_IMAGE_MOUNT}/{self.path}")]
                image = {"reference": self.location, "pullPolicy": "IfNotPresent"}
                spec["volumes"] = [{"name": "model", "image": image}]
            case "volume" | "bucket":
                store = _STORE_MOUNT if self.source == "volume" else self.location
                pull = {"name": "pull", "env": [_variable("MODEL_URI", f"{store}/{self.model}")]}
                spec["initContainers"] = [pull]
        annotations = with_former_names(
            {
                MODEL: self.model,
                CONTRACT_SHA256: self.contract_sha256,
                IMAGE_ID: self.image_id,
                SOURCE: self.source or "image",
            }
        )
        return {"metadata": {"annotations": annotations, "labels": labels}, "spec": spec}


def kustomize(kustomization: dict[str, Any]) -> str:
    """Return the YAML of a kustomization whose paths are relative to k8s/. Raises ClusterError."""
    with tempfile.TemporaryDirectory() as directory:
        # kustomize accepts relative paths only.
        to_root = os.path.relpath(os.path.realpath(ROOT), os.path.realpath(directory))
        paths = {
            key: [f"{to_root}/{path}" for path in kustomization.get(key, [])]
            for key in ("resources", "components")
        }
        file = Path(directory) / "kustomization.yaml"
        # Every JSON document is a YAML document.
        file.write_text(json.dumps(kustomization | paths), encoding="utf-8")
        return kubectl("kustomize", directory, seconds=_RENDER_SECONDS)


def _image(reference: str) -> dict[str, str]:
    name, _, digest = reference.partition("@")
    if digest:
        return {"newName": name, "digest": digest}
    name, _, tag = reference.rpartition(":")
    return {"newName": name, "newTag": tag}


def _variable(name: str, value: str) -> dict[str, str]:
    return {"name": name, "value": value}
