"""Contracts for tests of tensor shapes that no data set has."""

from typing import Any

from artifact.contract import (
    Contract,
    Environment,
    GoldenRows,
    ModelFile,
    Origin,
    Tensor,
)


def contract_of(inputs: list[Tensor], outputs: list[Tensor]) -> Contract:
    """A contract with these tensors; no model belongs to it."""
    empty: dict[str, Any] = {"rtol": 0, "atol": 0, "source": "none"}
    return Contract(
        name="made-up",
        version="1",
        purpose="to be decoded",
        owner="a test",
        model=ModelFile(sha256="0" * 64, size_bytes=0, ir_version=10, opsets={"": 21}),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        golden=GoldenRows(
            inputs={tensor.name: [] for tensor in inputs},
            outputs={tensor.name: [] for tensor in outputs},
            **empty,
        ),
        origin=Origin(command="", environment=Environment(python="", os="", libraries={})),
    )
