"""Settings of load mode: the settings of every server, and the artifact to serve.

Imports nothing that takes long: the pull starts as soon as the settings are read.
"""

from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from artifact.redact import redact
from artifact.uri import LocalPath
from serving.settings import Mode, Settings


class ModelLoadSettings(Settings):
    """The server's settings, and the artifact to pull."""

    mode: ClassVar[Mode] = "model_load"

    model_uri: str | None = Field(
        None,
        description="artifact to serve: `<store>/iris/1`, or the alias `<store>/iris@stable`; a "
        "store is a path, `file://`, `s3://`, `gs://`, `az://`, `https://` or `http://`",
    )
    model_dir: LocalPath | None = Field(
        None, description="directory that holds model.onnx and contract.json"
    )
    model_cache_dir: Path = Field(
        Path("/tmp/models"),  # noqa: S108 - named by sha256, and verified at each start
        description="directory that keeps pulled models by sha256, for the next start on this node",
    )
    model_cache_max_bytes: int | None = Field(
        None, ge=1, description="size limit of the cache; the least recently used model is evicted"
    )
    model_pull_seconds: float = Field(
        600, gt=0, le=86400, description="timeout of a pull, retries included"
    )

    model_poll_seconds: float | None = Field(
        None,
        gt=0,
        le=86400,
        description="seconds between polls of the alias in MODEL_URI; unset: resolved once at "
        "start-up",
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if bool(self.model_uri) == bool(self.model_dir):
            which = "both are" if self.model_uri else "neither is"
            raise ValueError(f"MODEL_URI or MODEL_DIR: expected one of them to be set, {which}")
        return self

    @model_validator(mode="after")
    def _polls_an_alias(self) -> Self:
        if self.model_poll_seconds is None:
            return self
        if "@" not in str(self.model_uri).rstrip("/").rpartition("/")[2]:
            raise ValueError(
                "MODEL_POLL_SECONDS: expected MODEL_URI to name an alias, as in "
                f"<store>/iris@stable, got {redact(str(self.model_uri))}"
            )
        if self.contract_sha256 is not None:
            raise ValueError(
                "MODEL_POLL_SECONDS: expected no CONTRACT_SHA256, which pins a version"
            )
        return self
