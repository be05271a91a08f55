"""Settings of a server, read from the environment and validated before anything is loaded.

Each mode adds the settings of its model's source. A test compares docs/settings.md with the
descriptions of these fields.
"""

import os
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from artifact.contract import Sha256
from artifact.redact import redact
from serving.errors import StartupError

Port = Annotated[int, Field(ge=0, le=65535)]
Mode = Literal["model_in_image", "model_load"]


class Settings(BaseModel):
    """Settings that both modes have. Port 0 takes any free port."""

    # Building the validator takes start-up time, and a process needs only that of its own mode.
    model_config = ConfigDict(frozen=True, defer_build=True)

    mode: ClassVar[Mode]

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: Port = Field(8000, description="port for predictions, health, and documentation")
    management_port: Port | None = Field(
        None,
        description="separate port for /metrics and /inventory; health is on both ports",
    )
    workers: int = Field(
        1, ge=1, le=256, description="number of worker processes; use one per core"
    )
    max_body_bytes: int = Field(
        4 * 1024 * 1024, ge=1, description="maximum size of a request body, in bytes"
    )
    max_batch_rows: int = Field(1024, ge=1, description="maximum number of rows in a request")
    drain_seconds: int = Field(
        20, ge=1, le=3600, description="seconds to finish running requests after TERM"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="minimum level of log lines"
    )
    access_log: bool = Field(
        False,  # noqa: FBT003 - it is the default
        description="log every request; otherwise only requests that failed with 5xx",
    )
    contract_sha256: Sha256 | None = Field(
        None, description="sha256 that contract.json must have; otherwise the server does not start"
    )

    @model_validator(mode="after")
    def _two_ports(self) -> Self:
        if self.port and self.port == self.management_port:
            raise ValueError(f"MANAGEMENT_PORT: expected another port than PORT, got {self.port}")
        return self

    @classmethod
    def from_environment(cls) -> Self:
        """Read the environment. Raises StartupError with all invalid settings.

        Names may be in upper or lower case. Empty variables count as unset, because manifests
        and Makefiles pass them.
        """
        variables = {name.lower(): value for name, value in os.environ.items() if value}
        try:
            return cls.model_validate({n: variables[n] for n in cls.model_fields if n in variables})
        except ValidationError as error:
            listed = "".join(f"\n  - {problem}" for problem in _messages(error))
            raise StartupError(f"settings in the environment:{listed}") from None


def _messages(error: ValidationError) -> list[str]:
    """Return one message for each invalid setting, without credentials."""
    lines = []
    for problem in error.errors(include_url=False):
        name = ".".join(str(part) for part in problem["loc"]).upper()
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            lines.append(f"{name}: expected to be set, is not set")
        elif name:
            actual = redact(repr(problem["input"]))
            lines.append(f"{name}: {message[0].lower()}{message[1:]}, got {actual}")
        else:
            lines.append(redact(message))
    return lines
