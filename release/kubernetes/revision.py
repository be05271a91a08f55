"""A revision: an entry of a track's rollout history, and the release that it runs."""

import re
from dataclasses import dataclass
from typing import Any, Self

from release.kubernetes import annotations
from release.kubernetes.deployment_name import TrackName

# Kubernetes adds this label to the template of a ReplicaSet.
POD_TEMPLATE_HASH = "pod-template-hash"
_SHA256_DIGITS = 12
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Revision:
    """A pod template. Its annotations name the release: image, model, and contract."""

    template: dict[str, Any]

    @classmethod
    def of(cls, owner: dict[str, Any]) -> Self:
        """Return the revision of a Deployment or a ReplicaSet; equal templates compare equal."""
        template = owner["spec"]["template"]
        metadata = template["metadata"]
        labels = {
            key: value for key, value in metadata["labels"].items() if key != POD_TEMPLATE_HASH
        }
        return cls({**template, "metadata": {**metadata, "labels": labels}})

    @property
    def image(self) -> str:
        """The server's image."""
        return str(self.server["image"])

    @property
    def server(self) -> dict[str, Any]:
        """The server's container."""
        container: dict[str, Any] = self.template["spec"]["containers"][0]
        return container

    @property
    def model(self) -> str:
        """The model, such as `iris/1`; `unknown` if something else wrote the template."""
        return self._annotation(annotations.MODEL)

    @property
    def model_name(self) -> str:
        """The model without its version, such as `iris`."""
        return self.model.partition("/")[0]

    @property
    def model_version(self) -> str | None:
        """The model's version, None if it is unknown."""
        return self.model.partition("/")[2] or None

    @property
    def contract_sha256(self) -> str:
        """The sha256 of contract.json."""
        return self._annotation(annotations.CONTRACT_SHA256)

    @property
    def image_id(self) -> str:
        """The image's ID in the Docker engine from which it was deployed."""
        return self._annotation(annotations.IMAGE_ID)

    @property
    def source(self) -> str:
        """Where the servers get the model: image, volume, bucket, or image_volume."""
        return self._annotation(annotations.SOURCE)

    @property
    def memory_limit(self) -> str | None:
        """The memory limit of a server."""
        limit: str | None = self.server.get("resources", {}).get("limits", {}).get("memory")
        return limit

    @property
    def release(self) -> tuple[str, str]:
        """The release: the image's ID and the contract's sha256."""
        return self.image_id, self.contract_sha256

    def __str__(self) -> str:
        image = re.sub(rf"(@sha256:.{{{_SHA256_DIGITS}}}).*", r"\1", self.image)
        return f"{self.model} (contract {self.contract_sha256[:_SHA256_DIGITS]}) in {image}"

    def on(self, track: TrackName) -> dict[str, Any]:
        """Return the template for another track."""
        metadata = self.template["metadata"]
        labels = {**metadata["labels"], "track": track}
        return {**self.template, "metadata": {**metadata, "labels": labels}}

    def _annotation(self, name: str) -> str:
        return annotations.read(self.template["metadata"], name) or _UNKNOWN
