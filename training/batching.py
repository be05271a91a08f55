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
    """Tell whether golden rows are answered beside other rows as by themselves."""
    rows = len(next(iter(golden.values())))
    both = {name: np.concatenate([array, _other(array)]) for name, array in golden.items()}
    alone = session.run(None, dict(golden))
    try:
        beside = session.run(None, both)
    except Exception:  # noqa: BLE001 - onnxruntime has no base class for its errors
        return False
    return all(
        len(got) == 2 * rows
        and got.shape[1:] == expected.shape[1:]
        and bool(agree(got[:rows], expected, rtol=RTOL, atol=ATOL).all())
        for got, expected in zip(map(np.asarray, beside), map(np.asarray, alone), strict=True)
    )


def _other(array: Array) -> Array:
    """Return as many other rows: floats that differ, for the rest the first row again."""
    if array.dtype.kind == "f":
        return np.asarray(1 - array[::-1], dtype=array.dtype)
    return np.asarray(np.repeat(array[:1], len(array), axis=0))
