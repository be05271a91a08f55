"""Compare a contract with what is really there: the files, the session, the runtime.

Called before the fork (files), when a session is opened (tensors and golden rows), and
by training before it publishes. Every check returns all differences it finds, each with
what was expected and what came. `python -m artifact.verify DIR` makes all of them at once.
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
# What onnxruntime prints by itself may hold values of an input.
onnxruntime.set_default_logger_severity(4)
_OPTIONAL = re.compile(r"optional\((.*)\)")
_CHUNK_BYTES = 1 << 20


def verify_files(directory: Path, contract_sha256: str | None = None) -> Contract:
    """Return the contract of an artifact whose files are what it says.

    contract_sha256: what `contract.json` must hash to, if that is known. Opens no session
    while the files are right. Raises ContractMismatch with every difference, those of the
    session and the golden rows included, when they are not.
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
    found = file_differences(contract, directory, contract_sha256)
    if not (directory / MODEL_FILE).is_file():
        return found
    try:
        session = open_session(contract, directory)
    except ContractMismatch as mismatch:
        return found + mismatch.differences
    return found + session_differences(contract, session)


def file_differences(
    contract: Contract, directory: Path, contract_sha256: str | None = None
) -> list[str]:
    """Return how the files of an artifact differ from its contract; reads both once."""
    found = []
    if contract_sha256 is not None:
        came = sha256_of(directory / CONTRACT_FILE)
        if came != contract_sha256:
            found.append(f"{CONTRACT_FILE}: sha256 expected {contract_sha256}, got {came}")
    path = directory / MODEL_FILE
    if not path.is_file():
        return [*found, f"{MODEL_FILE}: missing"]
    size = path.stat().st_size
    if size != contract.model.size_bytes:
        found.append(f"{MODEL_FILE}: expected {contract.model.size_bytes} bytes, got {size}")
    came = sha256_of(path)
    if came != contract.model.sha256:
        found.append(f"{MODEL_FILE}: sha256 expected {contract.model.sha256}, got {came}")
    return found


def open_session(contract: Contract, directory: Path) -> onnxruntime.InferenceSession:
    """Open the model of an artifact on one thread: a worker has a core, not the host.

    Raises ContractMismatch when this onnxruntime cannot load it.
    """
    try:
        return session_of(directory / MODEL_FILE)
    except Exception as error:
        said = _one_line(error).replace(str(directory / MODEL_FILE), MODEL_FILE)
        raise ContractMismatch(str(directory), [_why_not_loaded(contract, said)]) from error


def session_of(model: Path | bytes) -> onnxruntime.InferenceSession:
    """Open a model as both servers do; raises whatever onnxruntime raises."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # Its errors are raised; what it would print of them may hold values of an input.
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        options,
        providers=["CPUExecutionProvider"],
    )


def session_differences(contract: Contract, session: onnxruntime.InferenceSession) -> list[str]:
    """Return how a session's tensors and its golden rows differ from the contract."""
    optional = {tensor.name for tensor in contract.inputs if tensor.optional}
    # What the model has a default for is an input only if the contract says so.
    defaults = [node for node in session.get_overridable_initializers() if node.name in optional]
    found = []
    for kind, promised, real in (
        ("input", contract.inputs, [*session.get_inputs(), *defaults]),
        ("output", contract.outputs, session.get_outputs()),
    ):
        found += _tensor_differences(kind, promised, {node.name: node for node in real})
    try:
        inputs, expected = contract.golden_inputs(), contract.golden_outputs()
    except ValueError as error:
        return [*found, f"golden rows: {error}"]
    try:
        names = [output.name for output in contract.outputs]
        came = dict(zip(names, session.run(names, inputs), strict=True))
    except Exception as error:  # noqa: BLE001 - onnxruntime has no base class for its errors
        return [*found, f"golden rows: do not run: {_one_line(error)}"]
    for output in contract.outputs:
        found += _golden_differences(output, contract.golden, expected[output.name], came)
    return found


def verified_session(contract: Contract, directory: Path) -> onnxruntime.InferenceSession:
    """Open the model of an artifact whose files were verified, and run its golden rows.

    Raises ContractMismatch with every difference of the session from the contract.
    """
    session = open_session(contract, directory)
    if found := session_differences(contract, session):
        raise ContractMismatch(str(directory), found)
    return session


def tensors_of(
    session: onnxruntime.InferenceSession,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return a session's inputs and outputs as tensors of a contract.

    An input is optional if its type says so, or if the model has a default for it. Raises
    ContractMismatch, naming all of them, when some have no type that a contract knows.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    defaults = session.get_overridable_initializers()
    types = [(node, _there(node.type)) for node in (*inputs, *defaults)]
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
            *(_tensor(node, optional=node.type != _there(node.type)) for node in inputs),
            *(_tensor(node, optional=True) for node in defaults),
        ),
        tuple(_tensor(node, optional=False) for node in outputs),
    )


def _tensor(node: Any, *, optional: bool) -> Tensor:
    dtype, shape = _DTYPES[_there(node.type)], tuple(node.shape)
    return Tensor(name=node.name, dtype=dtype, shape=shape, optional=optional)


def _there(type_: str) -> str:
    """Return what a value of an optional type is when it is there."""
    optional = _OPTIONAL.fullmatch(type_)
    return optional[1] if optional else type_


def _described(type_: str) -> str:
    """Return a type that is not served, and what to do about it if something can be done."""
    if type_.startswith(("seq(map(", "map(")):
        # What skl2onnx gives to a classifier.
        return f'{type_} (export without ZipMap: options={{"zipmap": False}})'
    if type_.startswith("seq("):
        return f"{type_} (export its elements as tensors)"
    return type_


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex; reads it in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def agree(got: Array, expected: Array, *, rtol: float, atol: float) -> Array:
    """Return where two arrays of one shape agree: floats within the tolerance, others exactly."""
    if expected.dtype.kind != "f":
        return np.asarray(got == expected)
    return np.isclose(got, expected, rtol=rtol, atol=atol, equal_nan=True)


def _tensor_differences(kind: str, promised: tuple[Tensor, ...], real: dict[str, Any]) -> list[str]:
    found = []
    for tensor in promised:
        node = real.pop(tensor.name, None)
        if node is None:
            found.append(f'{kind} "{tensor.name}": expected {tensor.signature}, the model has none')
            continue
        type_ = _there(node.type) if tensor.optional else node.type
        came = f"{_DTYPES.get(type_) or _described(type_)}{dimensions(node.shape)}"
        if came != tensor.signature:
            found.append(f'{kind} "{tensor.name}": expected {tensor.signature}, got {came}')
    found += [f'{kind} "{name}": not in the contract, the model has it' for name in real]
    return found


def _golden_differences(
    output: Tensor, golden: GoldenRows, expected: Array, came: dict[str, Array]
) -> list[str]:
    got = came[output.name]
    if got.shape != expected.shape:
        shapes = f"{dimensions(list(expected.shape))}, got {dimensions(list(got.shape))}"
        return [f'golden rows: output "{output.name}" expected shape {shapes}']
    wrong = np.argwhere(~agree(got, expected, rtol=golden.rtol, atol=golden.atol))
    if not len(wrong):
        return []
    first = tuple(int(index) for index in wrong[0])
    where = f'golden rows: output "{output.name}"{dimensions(first)}'
    tolerance = f"rtol {golden.rtol:g}, atol {golden.atol:g}"
    count = f"{len(wrong)} of {expected.size} values differ"
    return [f"{where} expected {expected[first]}, got {got[first]} ({tolerance}; {count})"]


def _why_not_loaded(contract: Contract, said: str) -> str:
    """Name the opset or IR version when that is why; onnxruntime's own words otherwise."""
    runtime = f"onnxruntime {onnxruntime.__version__}"
    if ir := re.search(r"max supported IR version: (\d+)", said):
        return (
            f"{MODEL_FILE}: IR version {contract.model.ir_version}, {runtime} loads up to {ir[1]}"
        )
    if opset := re.search(r"support for domain (\S+) is till opset (\d+)", said):
        domain = "" if opset[1] == "ai.onnx" else opset[1]
        needed = contract.model.opsets.get(domain)
        return f"{MODEL_FILE}: opset {opset[1]} {needed}, {runtime} loads up to {opset[2]}"
    return f"{MODEL_FILE}: {runtime} does not load it: {said}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def main(directory: str) -> str | None:
    """Verify the artifact in a directory; return every difference as text, None without any."""
    path = Path(directory)
    try:
        contract = verify_files(path)
        verified_session(contract, path)
    except ContractMismatch as mismatch:
        return str(mismatch)
    print(f"{contract.name}/{contract.version}: the model is what its contract says")  # noqa: T201
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
