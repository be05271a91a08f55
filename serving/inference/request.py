"""The inference request: input arrays, and the outputs to compute.

Codecs create it from the bytes of a request body, and the batcher passes it to the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from artifact.contract import Array


@dataclass(slots=True, eq=False)
class InferenceRequest:
    """The tensors of one request, validated against the contract."""

    # By input name, with the contract's dtypes and shapes. Optional inputs may be missing.
    inputs: dict[str, Array]
    # Names of the outputs to return, in this order.
    outputs: Sequence[str]
