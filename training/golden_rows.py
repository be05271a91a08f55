"""Golden rows for an ONNX file: read from an .npz file, or generated.

A server is ready once it reproduces the golden rows, so they must exercise the graph: an attention
mask of zeros hides the rest of a text model.
"""

import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import onnxruntime

from artifact.contract import (
    Array,
    GoldenRows,
    Tensor,
    dimensions,
    nested_lists,
    numpy_dtype,
)
from artifact.verify import agree
from training.errors import TrainingError
from training.export import ATOL, RTOL
from training.inputs import (
    SEED,
    Arrays,
    Inputs,
    Shape,
    accepted_values,
    perturbed,
    run_model,
    try_run,
    uniform,
    varied,
)

# 1 is last: over a single token or column a softmax is always 1.
SIZES = (8, 32, 256, 1)
GOLDEN_ROWS = 4
# With more inputs and outputs than this, only one row is generated: people read contracts.
MAX_GOLDEN_VALUES = 10_000
# The factors by which inputs are perturbed: a class label may change only for large values.
_SCALES = (1.0, 1.0, 10.0, 100.0, 1e3, 1e4, 0.01)


@dataclass(frozen=True)
class Run:
    """Golden rows: inputs of a model with the outputs that it returned, by name."""

    inputs: Arrays
    outputs: Arrays
    # Where the inputs come from.
    source: str
    # The outputs that the rows do not verify, by name, with the reason.
    unverified: Mapping[str, str]

    @classmethod
    def of(
        cls, session: onnxruntime.InferenceSession, inputs: Inputs, arrays: Arrays, source: str
    ) -> Self:
        """Run a model; raises whatever onnxruntime raises."""
        outputs = run_model(session, arrays)
        return cls(arrays, outputs, source, _unverified(session, inputs, arrays, outputs))

    @property
    def notes(self) -> list[str]:
        """What the contract must say if the rows verify no output at all."""
        if len(self.unverified) < len(self.outputs):
            return []
        return [f"the golden rows verify nothing: {', '.join(self.unverified.values())}"]

    def golden_rows(self, notes: Iterable[str]) -> GoldenRows:
        """Return the golden rows of a contract; notes are appended to the source."""
        return GoldenRows(
            source="; ".join([self.source, *notes]),
            inputs={name: nested_lists(array) for name, array in self.inputs.items()},
            outputs={name: nested_lists(array) for name, array in self.outputs.items()},
            rtol=RTOL,
            atol=ATOL,
        )


def read_golden_rows(session: onnxruntime.InferenceSession, inputs: Inputs, path: Path) -> Run:
    """Run the arrays of an .npz file, one for each input; optional ones may be missing.

    Raises TrainingError that names every array that is missing, unknown, of another dtype
    or of another shape, and when the model does not run with them.
    """
    arrays = _read(path)
    wrong = [
        f'"{name}" expected no such input, got one' for name in arrays if name not in _names(inputs)
    ]
    sizes: dict[str, int] = {}
    for tensor in inputs:
        if tensor.name not in arrays:
            if tensor.optional:
                continue
            wrong.append(f'"{tensor.name}" expected {tensor.signature}, got nothing')
            continue
        array = arrays[tensor.name]
        if tensor.dtype == "string" and array.dtype.kind == "U":
            arrays[tensor.name] = array = array.astype(object)
        if not _fits(tensor, array, sizes):
            dtype = "string" if array.dtype.kind == "O" else array.dtype
            wrong.append(
                f'"{tensor.name}" expected {tensor.signature}, '
                f"got {dtype}{dimensions(list(array.shape))}"
            )
    if wrong:
        raise TrainingError(f"{path}: {'; '.join(wrong)}")
    try:
        return Run.of(session, inputs, arrays, path.name)
    except Exception as error:
        raise TrainingError(f"{path}: the model does not run with it: {_line(error)}") from error


def generate_golden_rows(
    session: onnxruntime.InferenceSession, inputs: Inputs, texts: Sequence[str] = ()
) -> Run:
    """Run inputs that are made from the shapes, SEED, and the values that the model accepts.

    texts: strings that the model knows, such as categories. Leading dynamic dimensions are
    GOLDEN_ROWS, or 1 if that does not run or is large; other dynamic dimensions are the first of
    SIZES that runs. Optional inputs are left out. Raises TrainingError with the reasons of
    onnxruntime if no size runs.
    """
    inputs = tuple(tensor for tensor in inputs if not tensor.optional)
    reasons: dict[str, str] = {}
    for size in SIZES:
        shapes = _shapes(inputs, 1, size)
        shown = ", ".join(
            f"{tensor.name}{dimensions(list(shape))}"
            for tensor, shape in zip(inputs, shapes, strict=True)
        )
        for value in (1, 0) if shown not in reasons else ():
            running = uniform(inputs, shapes, value)
            try:
                run_model(session, running)
            except Exception as error:  # noqa: BLE001 - onnxruntime has no base class for its errors
                reasons[shown] = _line(error)
                continue
            arrays = _exercising(session, inputs, size, running, texts)
            return Run.of(session, inputs, arrays, f"generated, seed {SEED}")
    listed = "".join(f"\n  - {shown}: {reason}" for shown, reason in reasons.items())
    raise TrainingError(
        "the model runs with none of the inputs that its shapes suggest. Provide real rows with "
        f"SAMPLE=rows.npz (input name -> array).{listed}"
    )


def same(output: Array, expected: Array) -> bool:
    """Return whether two outputs have the same shape, and values within the tolerance."""
    return output.shape == expected.shape and bool(
        agree(output, expected, rtol=RTOL, atol=ATOL).all()
    )


def refuse_random(session: onnxruntime.InferenceSession, run: Run) -> None:
    """Raise TrainingError when the model answers the same rows differently a second time."""
    again = run_model(session, run.inputs)
    random = [f'"{name}"' for name, output in run.outputs.items() if not same(again[name], output)]
    if random:
        raise TrainingError(
            f"expected the same answer to the same rows, got another one in {', '.join(random)}: "
            "export the model for inference, without random nodes such as dropout"
        )


def _unverified(
    session: onnxruntime.InferenceSession, inputs: Inputs, arrays: Arrays, outputs: Arrays
) -> dict[str, str]:
    """Return the outputs that a run does not verify, by name, with the reason.

    NaN agrees with NaN, whatever the cause. An output that is the same for all inputs does not
    show that a server computes it. A model without inputs has one output only.
    """
    if not any(array.size for array in arrays.values()):
        return {}
    random = np.random.default_rng(SEED)
    tried = (try_run(session, perturbed(inputs, arrays, scale, random)) for scale in _SCALES)
    others = [other for other in tried if other is not None]
    reasons = {}
    for name, output in outputs.items():
        if output.size and output.dtype.kind == "f" and np.isnan(output).all():
            reasons[name] = f'output "{name}" is NaN'
        elif others and all(same(other[name], output) for other in others):
            reasons[name] = f'output "{name}" does not depend on the input'
    return reasons


def _read(path: Path) -> Arrays:
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise TrainingError(f"{path}: expected .npz (input name -> array), got one array")
        with loaded:
            return {name: np.asarray(loaded[name]) for name in loaded.files}
    except OSError as error:
        raise TrainingError(f"{path}: expected an .npz file: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise TrainingError(f"{path}: expected an .npz file of plain arrays: {error}") from error


def _names(tensors: tuple[Tensor, ...]) -> list[str]:
    return [tensor.name for tensor in tensors]


def _fits(tensor: Tensor, array: Array, sizes: dict[str, int]) -> bool:
    """Tell whether an array is what a tensor takes; `sizes` are the named dimensions so far."""
    empty = not array.size and 0 not in tensor.shape
    if array.dtype != numpy_dtype(tensor.dtype) or array.ndim != len(tensor.shape) or empty:
        return False
    return all(
        size == (sizes.setdefault(promised, size) if isinstance(promised, str) else promised)
        for promised, size in zip(tensor.shape, array.shape, strict=True)
        if promised is not None
    )


def _shapes(inputs: Inputs, rows: int, size: int) -> list[Shape]:
    """Return a size for each dimension; dynamic dimensions of one name have one size."""
    leading = {tensor.shape[0] for tensor in inputs if tensor.shape}
    return [
        tuple(
            promised
            if isinstance(promised, int)
            else rows
            if position == 0 or (promised is not None and promised in leading)
            else size
            for position, promised in enumerate(tensor.shape)
        )
        for tensor in inputs
    ]


def _exercising(
    session: onnxruntime.InferenceSession,
    inputs: Inputs,
    size: int,
    running: Arrays,
    texts: Sequence[str],
) -> Arrays:
    """Return several rows, or one row, of all values that the inputs accept.

    running: one row that runs. It is the result if no other row runs.
    """
    accepted = accepted_values(session, inputs, running, texts)
    for rows in (GOLDEN_ROWS, 1):
        arrays = varied(inputs, _shapes(inputs, rows, size), accepted)
        outputs = try_run(session, arrays)
        if outputs is None:
            continue
        values = sum(array.size for array in (*arrays.values(), *outputs.values()))
        if rows == 1 or values <= MAX_GOLDEN_VALUES:
            return arrays
    return running


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
