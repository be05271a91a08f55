"""What the environment says in load mode: the server's settings, and the artifact to get.

Read by __main__.py and command.py before anything slow is imported.
"""

from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from artifact.redact import redact
from serving.settings import Mode, Settings


class ModelLoadSettings(Settings):
    """The server's settings, and the artifact to pull."""

    mode: ClassVar[Mode] = "model_load"

    model_uri: str | None = Field(
        None,
        description="artifact to serve: `<store>/iris/1`, or the alias `<store>/iris@stable`; a "
        "store is a path, `file://`, `s3://`, `gs://`, `az://`, `https://` or `http://`",
    )
    model_dir: Path | None = Field(
        None, description="directory that holds model.onnx and contract.json"
    )
    model_cache_dir: Path = Field(
        Path("/tmp/models"),  # noqa: S108 - named by sha256, and verified at each start
        description="where pulled models are kept by sha256, for the next start on this node",
    )
    model_cache_max_bytes: int | None = Field(
        None, ge=1, description="most that the cache may hold; the longest unused goes first"
    )
    model_pull_seconds: float = Field(
        600, gt=0, le=86400, description="time that a pull may take, its retries included"
    )

    model_poll_seconds: float | None = Field(
        None,
        gt=0,
        le=86400,
        description="how often to look where the alias in MODEL_URI points, and serve that; "
        "without it, what it named at the start",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.model_uri) == bool(self.model_dir):
            which = "both are" if self.model_uri else "neither is"
            raise ValueError(f"MODEL_URI or MODEL_DIR: expected one of them to be set, {which}")
        return self

    @model_validator(mode="after")
    def _an_alias_to_follow(self) -> Self:
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
