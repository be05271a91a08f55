"""Verify an artifact: compare its contract with the files, the session, and this runtime.

Every check returns all differences at once, each with the expected and the actual value.
`python -m artifact.verify DIR` runs all checks.
"""

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from artifact.contract import (
    CONTRACT_FILE,
    MODEL_FILE,
    Array,
    Contract,
    ContractMismatch,
    Dtype,
    GoldenRows,
    Tensor,
    dimensions,
    read_contract,
)

_DTYPES: dict[str, Dtype] = {
    "tensor(bool)": "bool",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": "string",
}
# onnxruntime logs to stderr by itself, and its messages may contain input values. Errors are
# raised as exceptions anyway; 4 is FATAL.
onnxruntime.set_default_logger_severity(4)
_OPTIONAL = re.compile(r"optional\((.*)\)")
_CHUNK_BYTES = 1 << 20


def verify_files(directory: Path, contract_sha256: str | None = None) -> Contract:
    """Verify the files of an artifact and return its contract.

    contract_sha256: the expected hash of `contract.json`, if known. Raises ContractMismatch with
    every difference; only then opens a session, to list its differences as well.
    """
    if not directory.is_dir():
        raise ContractMismatch(str(directory), ["expected a directory with the artifact, got none"])
    try:
        contract = read_contract(directory)
    except ContractMismatch as mismatch:
        missing = [] if (directory / MODEL_FILE).is_file() else [f"{MODEL_FILE}: missing"]
        raise ContractMismatch(str(directory), [*mismatch.differences, *missing]) from None
    if file_differences(contract, directory, contract_sha256):
        raise ContractMismatch(str(directory), differences(contract, directory, contract_sha256))
    return contract


def differences(
    contract: Contract, directory: Path, contract_sha256: str | None = None
) -> list[str]:
    """Return every difference between a contract and the files, the session, this runtime."""
    results = file_differences(contract, directory, contract_sha256)
    if not (directory / MODEL_FILE).is_file():
        return results
    try:
        session = open_session(contract, directory)
    except ContractMismatch as mismatch:
        return results + mismatch.differences
    return results + session_differences(contract, session)


def file_differences(
    contract: Contract, directory: Path, contract_sha256: str | None = None
) -> list[str]:
    """Return the differences between the files of an artifact and its contract."""
    results = []
    if contract_sha256 is not None:
        actual = sha256_of(directory / CONTRACT_FILE)
        if actual != contract_sha256:
            results.append(f"{CONTRACT_FILE}: sha256 expected {contract_sha256}, got {actual}")
    path = directory / MODEL_FILE
    if not path.is_file():
        return [*results, f"{MODEL_FILE}: missing"]
    size = path.stat().st_size
    if size != contract.model.size_bytes:
        results.append(f"{MODEL_FILE}: expected {contract.model.size_bytes} bytes, got {size}")
    actual = sha256_of(path)
    if actual != contract.model.sha256:
        results.append(f"{MODEL_FILE}: sha256 expected {contract.model.sha256}, got {actual}")
    return results


def open_session(contract: Contract, directory: Path) -> onnxruntime.InferenceSession:
    """Open the model of an artifact. Raises ContractMismatch if onnxruntime cannot load it."""
    try:
        return session_of(directory / MODEL_FILE)
    except Exception as error:
        message = _one_line(error).replace(str(directory / MODEL_FILE), MODEL_FILE)
        raise ContractMismatch(str(directory), [_load_error(contract, message)]) from error


def session_of(model: Path | bytes) -> onnxruntime.InferenceSession:
    """Open a model like both servers do; raises the errors of onnxruntime."""
    options = onnxruntime.SessionOptions()
    # A worker process uses one core. By default onnxruntime would start a thread for each core.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # As above: messages may contain input values, and errors are raised.
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        options,
        providers=["CPUExecutionProvider"],
    )


def session_differences(contract: Contract, session: onnxruntime.InferenceSession) -> list[str]:
    """Return the differences of a session's tensors and golden rows from the contract."""
    optional = {tensor.name for tensor in contract.inputs if tensor.optional}
    # An initializer that a request may override is an input only if the contract lists it.
    defaults = [node for node in session.get_overridable_initializers() if node.name in optional]
    results = []
    for kind, promised, real in (
        ("input", contract.inputs, [*session.get_inputs(), *defaults]),
        ("output", contract.outputs, session.get_outputs()),
    ):
        results += _tensor_differences(kind, promised, {node.name: node for node in real})
    try:
        inputs, expected = contract.golden_inputs(), contract.golden_outputs()
    except ValueError as error:
        return [*results, f"golden rows: {error}"]
    try:
        names = [output.name for output in contract.outputs]
        actual = dict(zip(names, session.run(names, inputs), strict=True))
    except Exception as error:  # noqa: BLE001 - onnxruntime has no base class for its errors
        return [*results, f"golden rows: do not run: {_one_line(error)}"]
    for output in contract.outputs:
        results += _golden_differences(
            output, contract.golden, expected[output.name], actual[output.name]
        )
    return results


def verified_session(contract: Contract, directory: Path) -> onnxruntime.InferenceSession:
    """Open the model of an artifact with verified files, and run its golden rows.

    Raises ContractMismatch with every difference between session and contract.
    """
    session = open_session(contract, directory)
    if problems := session_differences(contract, session):
        raise ContractMismatch(str(directory), problems)
    return session


def tensors_of(
    session: onnxruntime.InferenceSession,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return a session's inputs and outputs as tensors of a contract.

    An input is optional if its type is optional, or if the model has a default for it. Raises
    ContractMismatch that names every tensor of an unsupported type.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    defaults = session.get_overridable_initializers()
    types = [(node, _element_type(node.type)) for node in (*inputs, *defaults)]
    types += [(node, node.type) for node in outputs]
    unknown = [
        f'"{node.name}" is {_described(node.type)}, expected a tensor of '
        f"{', '.join(_DTYPES.values())}"
        for node, type_ in types
        if type_ not in _DTYPES
    ]
    if unknown:
        raise ContractMismatch(MODEL_FILE, unknown)
    return (
        (
            *(_tensor(node, optional=node.type != _element_type(node.type)) for node in inputs),
            *(_tensor(node, optional=True) for node in defaults),
        ),
        tuple(_tensor(node, optional=False) for node in outputs),
    )


def _tensor(node: Any, *, optional: bool) -> Tensor:
    dtype, shape = _DTYPES[_element_type(node.type)], tuple(node.shape)
    return Tensor(name=node.name, dtype=dtype, shape=shape, optional=optional)


def _element_type(type_: str) -> str:
    """Return the type inside optional(…), or the type itself."""
    optional = _OPTIONAL.fullmatch(type_)
    return optional[1] if optional else type_


def _described(type_: str) -> str:
    """Return an unsupported type, with a hint how to export the model without it."""
    if type_.startswith(("seq(map(", "map(")):
        # The default output of classifiers in skl2onnx.
        return f'{type_} (export without ZipMap: options={{"zipmap": False}})'
    if type_.startswith("seq("):
        return f"{type_} (export its elements as tensors)"
    return type_


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex; reads it in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def agree(actual: Array, expected: Array, *, rtol: float, atol: float) -> Array:
    """Compare two arrays of the same shape, element by element: floats within the tolerance."""
    if expected.dtype.kind != "f":
        return np.asarray(actual == expected)
    return np.isclose(actual, expected, rtol=rtol, atol=atol, equal_nan=True)


def _tensor_differences(kind: str, promised: tuple[Tensor, ...], real: dict[str, Any]) -> list[str]:
    results = []
    for tensor in promised:
        node = real.pop(tensor.name, None)
        if node is None:
            results.append(
                f'{kind} "{tensor.name}": expected {tensor.signature}, the model has none'
            )
            continue
        type_ = _element_type(node.type) if tensor.optional else node.type
        actual = f"{_DTYPES.get(type_) or _described(type_)}{dimensions(node.shape)}"
        if actual != tensor.signature:
            results.append(f'{kind} "{tensor.name}": expected {tensor.signature}, got {actual}')
    results += [f'{kind} "{name}": not in the contract, the model has it' for name in real]
    return results


def _golden_differences(
    output: Tensor, golden: GoldenRows, expected: Array, actual: Array
) -> list[str]:
    if actual.shape != expected.shape:
        shapes = f"{dimensions(list(expected.shape))}, got {dimensions(list(actual.shape))}"
        return [f'golden rows: output "{output.name}" expected shape {shapes}']
    wrong = np.argwhere(~agree(actual, expected, rtol=golden.rtol, atol=golden.atol))
    if not len(wrong):
        return []
    first = tuple(int(index) for index in wrong[0])
    where = f'golden rows: output "{output.name}"{dimensions(first)}'
    tolerance = f"rtol {golden.rtol:g}, atol {golden.atol:g}"
    count = f"{len(wrong)} of {expected.size} values differ"
    return [f"{where} expected {expected[first]}, got {actual[first]} ({tolerance}; {count})"]


def _load_error(contract: Contract, message: str) -> str:
    """Name the opset or IR version if that is the cause; else return onnxruntime's message."""
    runtime = f"onnxruntime {onnxruntime.__version__}"
    if ir := re.search(r"max supported IR version: (\d+)", message):
        return (
            f"{MODEL_FILE}: IR version {contract.model.ir_version}, {runtime} loads up to {ir[1]}"
        )
    if opset := re.search(r"support for domain (\S+) is till opset (\d+)", message):
        domain = "" if opset[1] == "ai.onnx" else opset[1]
        needed = contract.model.opsets.get(domain)
        return f"{MODEL_FILE}: opset {opset[1]} {needed}, {runtime} loads up to {opset[2]}"
    return f"{MODEL_FILE}: {runtime} does not load it: {message}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def main(directory: str) -> str | None:
    """Verify the artifact in a directory; return every difference as text, or None."""
    path = Path(directory)
    try:
        contract = verify_files(path)
        verified_session(contract, path)
    except ContractMismatch as mismatch:
        return str(mismatch)
    print(f"{contract.name}/{contract.version}: the model agrees with its contract")  # noqa: T201
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
