"""What a request asks of a model.

Made by the codecs (rows.py, tensors.py), run by runner.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from artifact.contract import Array


@dataclass(slots=True, eq=False)
class InferenceRequest:
    """Inputs, arrays of the contract's dtypes, by name; and the names of outputs, in order."""

    inputs: dict[str, Array]
    outputs: Sequence[str]
