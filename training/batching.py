"""Whether rows of different requests may share a run of a model: decided when it is described.

Called by train.py and own.py, the tensors and golden rows being known. Where the tensors allow
it, it is tried: each golden row must get the same answer whatever other rows are in the run.
"""

from collections.abc import Mapping

import numpy as np
import onnxruntime

from serving.contract import Array, Tensor, why_no_batching
from serving.verify import agree
from training.errors import TrainingError
from training.export import ATOL, RTOL

_WORDS = {"true": True, "false": False}


def decide(
    session: onnxruntime.InferenceSession,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    golden: Mapping[str, Array],
    asked: str | None = None,
) -> tuple[bool, str]:
    """Return whether requests may share a run, and why.

    golden: inputs of one run, by name. asked: "true" or "false" of the person who knows the
    model better; None lets the model decide. Raises TrainingError for another word, and for
    "true" where the tensors do not allow it.
    """
    why_not = why_no_batching(inputs, outputs)
    if asked:
        if (wanted := _WORDS.get(asked.lower())) is None:
            raise TrainingError(f"BATCHING: expected true or false, got {asked!r}")
        if wanted and why_not:
            raise TrainingError(f"BATCHING: expected false, got true: {why_not}")
        return wanted, "as BATCHING says"
    if why_not:
        return False, why_not
    if not _independent(session, golden):
        return False, "a row's answer depends on the other rows in the run"
    return True, f"each row's answer is its own; {inputs[0].name} {inputs[0].signature}"


def _independent(session: onnxruntime.InferenceSession, golden: Mapping[str, Array]) -> bool:
    """Tell whether golden rows are answered among other rows as by themselves.

    The others stand before them and behind them. What does not run says nothing; if nothing runs,
    nothing is known.
    """
    alone = [np.asarray(output) for output in session.run(None, dict(golden))]
    rows = len(next(iter(golden.values())))
    if any(len(output) != rows for output in alone):
        return False
    known = False
    for other in (_turned, _shifted, _large):
        among = {
            name: np.concatenate([other(array), array, other(array)])
            for name, array in golden.items()
        }
        try:
            outputs = [np.asarray(output) for output in session.run(None, among)]
        except Exception:  # noqa: BLE001, S112 - onnxruntime has no base class for its errors
            continue
        known = True
        for got, expected in zip(outputs, alone, strict=True):
            if got.shape != (3 * rows, *expected.shape[1:]):
                return False
            if not agree(got[rows : 2 * rows], expected, rtol=RTOL, atol=ATOL).all():
                return False
    return known


def _turned(array: Array) -> Array:
    return np.asarray(array[::-1])


def _shifted(array: Array) -> Array:
    """Return numbers that are one more, booleans inverted, strings longer."""
    if array.dtype.kind == "b":
        return np.asarray(~array)
    return np.asarray(array + ("a" if array.dtype.kind == "O" else array.dtype.type(1)))


def _large(array: Array) -> Array:
    """Return floats that are far away, and the others turned."""
    if array.dtype.kind != "f":
        return _turned(array)
    return np.asarray(100 - 200 * array, dtype=array.dtype)
