"""Inputs for a model without data: values that the model accepts, and other values for a run.

All values depend on SEED alone, so the same model always gets the same inputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime

from artifact.contract import Array, Tensor, numpy_dtype

SEED = 0
# The largest integer that a model accepts is one of these, or it is smaller than twice the next.
MAXIMA = tuple(2**bits - 1 for bits in range(15, 0, -1))
TEXTS = ("", "1", "2.5", "a", "some text")
MAX_TEXTS_OF_MODEL = 16

Arrays = dict[str, Array]
Shape = tuple[int, ...]
Inputs = tuple[Tensor, ...]


def run_model(session: onnxruntime.InferenceSession, inputs: Mapping[str, Array]) -> Arrays:
    """Return all outputs by name; raises whatever onnxruntime raises."""
    options = onnxruntime.RunOptions()
    # Some runs are expected to fail: the exception has the reason, and stderr stays empty.
    options.log_severity_level = 4
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, inputs, options)
    return dict(zip(names, map(np.asarray, outputs), strict=True))


def try_run(session: onnxruntime.InferenceSession, inputs: Mapping[str, Array]) -> Arrays | None:
    """Return all outputs by name, None if the model does not run with these inputs."""
    try:
        return run_model(session, inputs)
    except Exception:  # noqa: BLE001 - onnxruntime has no base class for its errors
        return None


def uniform(inputs: Inputs, shapes: Sequence[Shape], value: int) -> Arrays:
    """Return inputs that are 1 everywhere, or 0 everywhere, except for random floats."""
    random = np.random.default_rng(SEED)
    arrays: Arrays = {}
    for tensor, shape in zip(inputs, shapes, strict=True):
        dtype = numpy_dtype(tensor.dtype)
        if dtype.kind == "f":
            arrays[tensor.name] = np.asarray(random.standard_normal(shape)).astype(dtype)
        else:
            text = "1" if value else ""
            arrays[tensor.name] = np.full(shape, text if dtype.kind == "O" else value, dtype)
    return arrays


def accepted_values(
    session: onnxruntime.InferenceSession, inputs: Inputs, running: Arrays, texts: Sequence[str]
) -> Arrays:
    """Return which values each input accepts: the smallest and largest integer, or all texts.

    Each value is tried in one input, with the others as in `running`, which runs: an index that a
    table does not have, such as a token beyond the vocabulary, does not run. Floats have no entry.
    """
    return {
        tensor.name: _accepted(session, tensor, running, texts)
        for tensor in inputs
        if running[tensor.name].dtype.kind != "f"
    }


def varied(inputs: Inputs, shapes: Sequence[Shape], accepted: Arrays) -> Arrays:
    """Return random inputs of accepted values.

    In every second row, floats are not negative, because many functions are NaN below 0, and
    integers are small, because a mask or a length may be meant. Every array that is not of floats
    begins with the largest value and ends with the smallest, so that a mask of one row has both.
    """
    random = np.random.default_rng(SEED)
    return {
        tensor.name: _varied(shape, numpy_dtype(tensor.dtype), accepted.get(tensor.name), random)
        for tensor, shape in zip(inputs, shapes, strict=True)
    }


def perturbed(inputs: Inputs, arrays: Arrays, scale: float, random: np.random.Generator) -> Arrays:
    """Return other values for the inputs of a run, in arrays of the same shapes.

    Floats get standard normal noise and are multiplied by `scale`. Other types are drawn from the
    values in `arrays`, which the model accepts: integers from their range, in half of the rows
    from its lowest two values only.
    """
    return {
        tensor.name: _perturbed(tensor, arrays[tensor.name], scale, random)
        for tensor in inputs
        if tensor.name in arrays
    }


def _accepted(
    session: onnxruntime.InferenceSession, tensor: Tensor, running: Arrays, texts: Sequence[str]
) -> Array:
    array = running[tensor.name]

    def runs(value: int | str) -> bool:
        return try_run(session, {**running, tensor.name: np.full_like(array, value)}) is not None

    if array.dtype.kind == "O":
        candidates = dict.fromkeys([*TEXTS, *texts[:MAX_TEXTS_OF_MODEL]])
        return np.array([text for text in candidates if runs(text)], dtype=object)
    if _may_be_a_size(tensor):
        return np.resize(array, 1)
    smallest = 0 if runs(0) else 1
    largest = next((value for value in _maxima(tensor, array) if runs(value)), smallest)
    return np.array([smallest, largest], array.dtype)


def _maxima(tensor: Tensor, array: Array) -> tuple[int, ...]:
    """Return the largest integers to try, in this order."""
    if _is_binary(tensor):
        return (1,)
    return tuple(value for value in MAXIMA if value <= np.iinfo(array.dtype).max)


def _is_binary(tensor: Tensor) -> bool:
    """Return whether an input has the values 0 and 1 only: a boolean, or a mask by its name.

    Text models run with any mask, but a mask of large numbers drowns the rest of their input.
    """
    return tensor.dtype == "bool" or "mask" in tensor.name.lower()


def _may_be_a_size(tensor: Tensor) -> bool:
    """Return whether a tensor may be a shape, a count or a scale: a scalar, or a fixed vector.

    There, a large value could make the model allocate more memory than the machine has, and some
    kernels of onnxruntime divide by it: a 0 ends the process.
    """
    fixed = all(isinstance(size, int) for size in tensor.shape)
    return fixed and len(tensor.shape) < 2 and tensor.dtype not in {"bool", "string"}


def _varied(
    shape: Shape, dtype: np.dtype[Any], accepted: Array | None, random: np.random.Generator
) -> Array:
    if accepted is None:
        array = np.asarray(random.standard_normal(shape)).astype(dtype)
        if shape:
            array[1::2] = np.abs(array[1::2])
        return array
    if dtype.kind == "O":
        array = np.array(random.choice(accepted, shape), dtype)
    else:
        low, high = int(accepted[0]), int(accepted[-1])
        array = _integers(low, high, shape, dtype, random)
        if shape:
            array[1::2] = _integers(low, min(low + 1, high), array[1::2].shape, dtype, random)
    if array.size:
        array.flat[-1] = accepted[0]
        array.flat[0] = accepted[-1]
    return array


def _perturbed(tensor: Tensor, array: Array, scale: float, random: np.random.Generator) -> Array:
    kind, shape = array.dtype.kind, array.shape
    if not array.size:
        return array
    if kind == "O":
        texts = sorted(set(array.flat))
        choices = texts if len(texts) > 1 else [*texts, *TEXTS]
        return np.array(random.choice(choices, shape), object)
    if _may_be_a_size(tensor):
        # Not 0, and not large.
        other = 1 - random.random(shape) if kind == "f" else random.integers(1, 3, shape)
        return np.where(random.random(shape) < 0.5, array, np.asarray(other).astype(array.dtype))
    if kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            return ((array + random.standard_normal(shape)) * scale).astype(array.dtype)
    low, high = _range(tensor, array)
    low_rows = random.random((*shape[:1], *[1] * (len(shape) - 1))) < 0.5
    return np.where(
        low_rows,
        _integers(low, min(low + 1, high), shape, array.dtype, random),
        _integers(low, high, shape, array.dtype, random),
    )


def _range(tensor: Tensor, array: Array) -> tuple[int, int]:
    """Return the range of the integers or booleans in an array, never of a single one."""
    low, high = int(array.min()), int(array.max())
    if low < high:
        return low, high
    if _is_binary(tensor):
        return 0, 1
    # Not 0 instead of another value: a model that divides by it would end the process.
    return (high - 1, high) if high > 1 else (high, high + 1)


def _integers(
    low: int, high: int, shape: Shape, dtype: np.dtype[Any], random: np.random.Generator
) -> Array:
    """Return random integers, or booleans, from low to high, both included."""
    return np.asarray(random.integers(low, high, shape, dtype, endpoint=True))
