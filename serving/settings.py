"""What the environment says: every setting of a server, checked before anything is loaded.

Each release mode adds where its model comes from (model_in_image, model_load). The
README's table of settings is compared with these classes by a test.
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
    """Settings that both release modes have. A port of 0 takes any free one."""

    # Only the validator of the mode's settings is ever needed.
    model_config = ConfigDict(frozen=True, defer_build=True)

    mode: ClassVar[Mode]

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: Port = Field(8000, description="port of predictions, health and documentation")
    management_port: Port | None = Field(
        None, description="port that alone has /metrics and /inventory; health is on both"
    )
    workers: int = Field(1, ge=1, le=256, description="processes; one a core")
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1, description="largest request body")
    max_batch_rows: int = Field(1024, ge=1, description="most rows in one request")
    drain_seconds: int = Field(
        20, ge=1, le=3600, description="time to answer what was begun, after TERM"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level that is logged"
    )
    access_log: bool = Field(
        False,  # noqa: FBT003 - it is the default
        description="log each request; without it, those that failed by the server's fault",
    )
    contract_sha256: Sha256 | None = Field(
        None, description="refuse to start unless contract.json has this sha256"
    )

    @model_validator(mode="after")
    def _two_ports(self) -> Self:
        if self.port and self.port == self.management_port:
            raise ValueError(f"MANAGEMENT_PORT: expected another port than PORT, got {self.port}")
        return self

    @classmethod
    def from_environment(cls) -> Self:
        """Read the environment. Raises StartupError with every setting that is wrong.

        In capitals or not. One that is empty is as good as none: manifests and Makefiles write it.
        """
        variables = {name.lower(): value for name, value in os.environ.items() if value}
        try:
            return cls.model_validate({n: variables[n] for n in cls.model_fields if n in variables})
        except ValidationError as error:
            listed = "".join(f"\n  - {problem}" for problem in _problems(error))
            raise StartupError(f"settings in the environment:{listed}") from None


def _problems(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False):
        name = ".".join(str(part) for part in problem["loc"]).upper()
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            lines.append(f"{name}: expected to be set, it is not")
        elif name:
            actual = redact(repr(problem["input"]))
            lines.append(f"{name}: {message[0].lower()}{message[1:]}, got {actual}")
        else:
            lines.append(redact(message))
    return lines
