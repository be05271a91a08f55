"""An artifact in memory: a model's bytes and the contract that describes them.

Built by train.py and own.py, published by store.py. What is named here was checked
before anything took time.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from pydantic import TypeAdapter, ValidationError

from artifact.contract import (
    CONTRACT_FILE,
    MODEL_FILE,
    Alias,
    Contract,
    GoldenRows,
    ModelFile,
    Name,
    Origin,
    Tensor,
    Version,
    problems,
)
from artifact.store import Store, open_store
from training.errors import TrainingError
from training.progress import Steps


@dataclass(frozen=True)
class Identity:
    """What an artifact is called, who answers for it, and where it goes."""

    name: str
    version: str
    store: Store
    alias: str | None

    @classmethod
    def checked(cls, name: str, version: str, store: str | Path, alias: str | None) -> "Identity":
        """Return the identity of a version that the store does not have yet.

        Raises TrainingError that names every variable that is wrong.
        """
        wanted = [("NAME", name, Name), ("VERSION", version, Version)]
        if alias:
            wanted.append(("ALIAS", alias, Alias))
        wrong = [problem for variable in wanted if (problem := _problem(*variable))]
        if wrong:
            raise TrainingError("; ".join(wrong))
        opened = open_store(store)
        opened.reject_existing(name, version)
        return cls(name, version, opened, alias or None)


def _problem(variable: str, value: str, rule: Any) -> str | None:
    if not value:
        return f"{variable}: expected a value, got none"
    try:
        TypeAdapter(rule).validate_python(value)
    except ValidationError as error:
        return f"{variable}: {problems(error)[0].removesuffix('.')}, got {value!r}"
    return None


@dataclass(frozen=True)
class Artifact:
    """A model file and its contract, before anybody else sees them."""

    contract: Contract
    model: bytes

    def publish(self, identity: Identity) -> str:
        """Make it a version of the store, set its alias, and return its path or URI."""
        location = identity.store.publish(self.contract, self.model)
        if identity.alias:
            identity.store.set_alias(identity.name, identity.alias, identity.version)
        return location

    def show(self, location: str, identity: Identity, steps: Steps, facts: dict[str, str]) -> None:
        """Show where it is and what its files hash to, after what is known of it."""
        alias = {"alias": f"{identity.alias} -> {identity.version}"} if identity.alias else {}
        contract = hashlib.sha256(self.contract.to_json().encode()).hexdigest()
        hashes = {
            f"{MODEL_FILE} sha256": self.contract.model.sha256,
            f"{CONTRACT_FILE} sha256": contract,
        }
        steps.show({**facts, "artifact": location, **alias, **hashes})


def contract_of(  # noqa: PLR0913 - one for each part of a contract
    identity: Identity,
    model: bytes,
    *,
    purpose: str,
    owner: str,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    batching: bool,
    golden: GoldenRows,
    origin: Origin,
) -> Contract:
    """Return the contract of a model; raises TrainingError that names what has no place in one."""
    try:
        return Contract(
            name=identity.name,
            version=identity.version,
            purpose=purpose,
            owner=owner,
            model=_model_file(model),
            inputs=inputs,
            outputs=outputs,
            batching=batching,
            golden=golden,
            origin=origin,
        )
    except ValidationError as error:
        raise TrainingError(
            f"{identity.name}: no contract: {'; '.join(problems(error))}"
        ) from error


def _model_file(model: bytes) -> ModelFile:
    described = onnx.load_model_from_string(model)
    return ModelFile(
        sha256=hashlib.sha256(model).hexdigest(),
        size_bytes=len(model),
        ir_version=described.ir_version,
        # "ai.onnx" is another spelling of the default domain.
        opsets={
            "" if opset.domain == "ai.onnx" else opset.domain: opset.version
            for opset in described.opset_import
        },
    )
