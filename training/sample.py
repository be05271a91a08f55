"""Golden rows for a model that came without data: given by its owner, or generated.

Used by own.py. The rows run through the model here; what the model answers becomes the
contract's promise.
"""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from serving.contract import Array, Tensor, dimensions, numpy_dtype
from serving.verify import agree
from training.errors import TrainingError
from training.export import ATOL, RTOL

SEED = 0
SIZES = (1, 32, 256)
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Run:
    """Inputs of a model with the outputs it gave, by name, and where the inputs come from."""

    inputs: Arrays
    outputs: Arrays
    source: str


def given(session: onnxruntime.InferenceSession, inputs: tuple[Tensor, ...], path: Path) -> Run:
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
        return Run(arrays, _run(session, arrays), path.name)
    except Exception as error:
        raise TrainingError(f"{path}: the model does not run with it: {_line(error)}") from error


def generated(session: onnxruntime.InferenceSession, inputs: tuple[Tensor, ...]) -> Run:
    """Run inputs that only the shapes and SEED decide; optional ones are left out.

    Leading dynamic dimensions are 1, the others the first of SIZES that runs. Floats are
    standard normal, integers 0, bools false, strings empty. Raises TrainingError with
    onnxruntime's reason when none runs.
    """
    inputs = tuple(tensor for tensor in inputs if not tensor.optional)
    reasons = []
    tried: list[list[tuple[int, ...]]] = []
    for size in SIZES:
        shapes = _shapes(inputs, size)
        if shapes in tried:
            continue
        tried.append(shapes)
        arrays = _values(inputs, shapes)
        try:
            return Run(arrays, _run(session, arrays), f"generated, seed {SEED}")
        except Exception as error:  # noqa: BLE001 - onnxruntime has no base class for its errors
            shown = ", ".join(
                f"{tensor.name}{dimensions(list(shape))}"
                for tensor, shape in zip(inputs, shapes, strict=True)
            )
            reasons.append(f"\n  - {shown}: {_line(error)}")
    raise TrainingError(
        "the model runs with none of the inputs that its shapes suggest. Give real ones with "
        f"SAMPLE=rows.npz (input name -> array).{''.join(reasons)}"
    )


def refuse_random(session: onnxruntime.InferenceSession, run: Run) -> None:
    """Raise TrainingError when the model answers the same rows differently a second time."""
    again = _run(session, run.inputs)
    random = [
        f'"{name}"'
        for name, answer in run.outputs.items()
        if answer.shape != again[name].shape
        or not agree(again[name], answer, rtol=RTOL, atol=ATOL).all()
    ]
    if random:
        raise TrainingError(
            f"expected the same answer to the same rows, got another one in {', '.join(random)}: "
            "export the model for inference, without random nodes such as dropout"
        )


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


def _shapes(inputs: tuple[Tensor, ...], size: int) -> list[tuple[int, ...]]:
    """Return a size for each dimension; dynamic ones of one name are of one size."""
    leading = {tensor.shape[0] for tensor in inputs if tensor.shape}
    return [
        tuple(
            promised
            if isinstance(promised, int)
            else 1
            if position == 0 or (promised is not None and promised in leading)
            else size
            for position, promised in enumerate(tensor.shape)
        )
        for tensor in inputs
    ]


def _values(inputs: tuple[Tensor, ...], shapes: list[tuple[int, ...]]) -> Arrays:
    random = np.random.default_rng(SEED)
    values: Arrays = {}
    for tensor, shape in zip(inputs, shapes, strict=True):
        dtype = numpy_dtype(tensor.dtype)
        if dtype.kind == "f":
            values[tensor.name] = random.standard_normal(shape).astype(dtype)
        else:
            values[tensor.name] = np.full(shape, "" if tensor.dtype == "string" else 0, dtype)
    return values


def _run(session: onnxruntime.InferenceSession, inputs: Mapping[str, Array]) -> Arrays:
    options = onnxruntime.RunOptions()
    # Only here: a size that does not run is expected, and its reason is in the exception.
    options.log_severity_level = 4
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, inputs, options)
    return dict(zip(names, map(np.asarray, outputs), strict=True))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
