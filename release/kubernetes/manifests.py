"""The manifests of one release: k8s/ with its image, its contract and its model filled in.

What is applied is what kustomize makes of k8s/; here is only the kustomization that a person
would write for one release.
"""

import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from artifact.contract import Contract
from release.kubernetes.kubectl import kubectl
from release.names import is_hashed, with_hash
from serving.settings import Mode

ROOT = Path(__file__).parent.parent.parent / "k8s"
Track = Literal["stable", "canary"]
Source = Literal["volume", "bucket", "image_volume"]
SOURCES: tuple[Source, ...] = ("volume", "bucket", "image_volume")

# On the pod template: what a release is, for servers and for the next engineer.
MODEL = "inference/model"
CONTRACT_SHA256 = "inference/contract-sha256"
IMAGE_ID = "inference/image-id"
SOURCE = "inference/source"

# With the 23 characters that a canary and its pods append, a name fits into a label's 63.
_MAX_NAME = 40
# RFC 1035, which Kubernetes demands of a Service's name.
_LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
# Where the overlays mount the store and a model's image.
_STORE, _IMAGE = "/store", "/image"
# What k8s/base asks for, which is enough for a small model.
_MEMORY_MIB, _SERVER_MIB = 192, 128
# onnxruntime reads the file, parses it, and keeps its own copy of the weights.
_MEMORY_OF_MODEL = 3
_DISK_MIB = 1024
_MIB = 1 << 20


def instance_of(model: str, mode: str) -> str:
    """Return the name of the objects of a model in a mode, such as `iris-model-load`.

    Models never share a name: `my_model` becomes `my-model--535d4cfe74-model-load`.
    """
    suffix = _suffix(mode)
    max_length = _MAX_NAME - len(suffix)
    if _LABEL.fullmatch(model) and len(model) <= max_length and not is_hashed(model):
        return model + suffix
    readable = re.sub("[^a-z0-9]", "-", model)
    if not readable[:1].isalpha():
        readable = f"m-{readable}"
    return with_hash(readable, model, max_length) + suffix


def previous_instance_of(model: str, mode: str) -> str:
    """Return the name that older versions of this project chose; several models can share it."""
    return re.sub("[._]", "-", model) + _suffix(mode)


def _suffix(mode: str) -> str:
    return f"-{mode.replace('_', '-')}"


def track_name(instance: str, track: Track) -> str:
    """Return what a track's Deployment and its autoscaler are called."""
    return instance if track == "stable" else f"{instance}-{track}"


@dataclass(frozen=True)
class Manifests:
    """A release of a model in a mode, as Kubernetes is told.

    image: by digest, or by a tag that does not move. image_id: what Docker calls its content.
    where: the bucket, or the model's own image. path: of the model in that image. deployed_as:
    the name of the model's release in the cluster; None chooses the name of a new release.
    """

    mode: Mode
    namespace: str
    contract: Contract
    contract_sha256: str
    image: str
    image_id: str
    path: str
    source: Source | None = None
    where: str | None = None
    deployed_as: str | None = None

    @property
    def instance(self) -> str:
        """The name of its objects."""
        return self.deployed_as or instance_of(self.contract.name, self.mode)

    @property
    def model(self) -> str:
        """Its model, as `iris/1`."""
        return f"{self.contract.name}/{self.contract.version}"

    @property
    def memory_mib(self) -> int:
        """What a server of it may use."""
        model = -(-self.contract.model.size_bytes // _MIB)
        return max(_MEMORY_MIB, _SERVER_MIB + _MEMORY_OF_MODEL * model)

    def render(self, track: Track) -> str:
        """Return the objects of a track, as YAML. Raises ClusterError."""
        return kustomize(self.kustomization(track))

    def kustomization(self, track: Track) -> dict[str, Any]:
        """Return what to add to k8s/; its paths are those of k8s/."""
        overlay = f"{self.mode}/{self.source}" if self.source else self.mode
        patch = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "any"},
            "spec": {"template": self._template()},
        }
        volume = {"kind": "PersistentVolume", "path": "metadata/name"}
        return {
            "namespace": self.namespace,
            "namePrefix": f"{self._label}-",
            "resources": [overlay],
            "components": ["components/canary"] if track == "canary" else [],
            "images": [{"name": self.mode, **_image(self.image)}],
            "labels": [
                {
                    "pairs": {"app.kubernetes.io/instance": self.instance},
                    "includeSelectors": True,
                }
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
    def _label(self) -> str:
        """The name of its objects without the mode."""
        return self.instance.removesuffix(_suffix(self.mode))

    @property
    def _volume_prefix(self) -> str:
        """The namespace, because volumes belong to the cluster, and a separator.

        With dashes, model `c` in namespace `a-b` and model `b-c` in namespace `a` would share a
        volume. No namespace contains a dot. If neither name contains a dash, the separator stays
        the dash of older versions, because the volume of a claim cannot change.
        """
        separator = "." if "-" in self.namespace + self._label else "-"
        return f"{self.namespace}{separator}"

    def _template(self) -> dict[str, Any]:
        memory = f"{self.memory_mib}Mi"
        server: dict[str, Any] = {
            "name": "server",
            "resources": {"requests": {"memory": memory}, "limits": {"memory": memory}},
        }
        spec: dict[str, Any] = {"containers": [server]}
        match self.source:
            case "image_volume":
                server["env"] = [_variable("MODEL_DIR", f"{_IMAGE}/{self.path}")]
                image = {"reference": self.where, "pullPolicy": "IfNotPresent"}
                spec["volumes"] = [{"name": "model", "image": image}]
            case "volume" | "bucket":
                store = _STORE if self.source == "volume" else self.where
                pull = {"name": "pull", "env": [_variable("MODEL_URI", f"{store}/{self.model}")]}
                spec["initContainers"] = [pull]
                disk = max(_DISK_MIB, 2 * self.contract.model.size_bytes // _MIB)
                spec["volumes"] = [{"name": "model", "emptyDir": {"sizeLimit": f"{disk}Mi"}}]
        annotations = {
            MODEL: self.model,
            CONTRACT_SHA256: self.contract_sha256,
            IMAGE_ID: self.image_id,
            SOURCE: self.source or "image",
        }
        return {"metadata": {"annotations": annotations}, "spec": spec}


def kustomize(kustomization: dict[str, Any]) -> str:
    """Return what kustomize makes of k8s/ with something added, as YAML. Raises ClusterError."""
    with tempfile.TemporaryDirectory() as directory:
        # It takes relative paths only.
        to_root = os.path.relpath(os.path.realpath(ROOT), os.path.realpath(directory))
        paths = {
            key: [f"{to_root}/{path}" for path in kustomization.get(key, [])]
            for key in ("resources", "components")
        }
        file = Path(directory) / "kustomization.yaml"
        # JSON is YAML.
        file.write_text(json.dumps(kustomization | paths), encoding="utf-8")
        return kubectl("kustomize", directory, seconds=60)


def _image(reference: str) -> dict[str, str]:
    name, _, digest = reference.partition("@")
    if digest:
        return {"newName": name, "digest": digest}
    name, _, tag = reference.rpartition(":")
    return {"newName": name, "newTag": tag}


def _variable(name: str, value: str) -> dict[str, str]:
    return {"name": name, "value": value}
