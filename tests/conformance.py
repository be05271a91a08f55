"""Serve ONNX's test cases and compare the outputs with the published ones: `make conformance`.

A case is a model with inputs and outputs. It is published as an artifact whose golden rows are
these inputs and outputs, and requested over the Open Inference Protocol, as JSON and as binary
data. Each case must either be served with the published outputs, or be rejected with a reason.
Anything else is a failure, and the exit status is 1.
"""

import asyncio
import json
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from rich.console import Console
from rich.progress import track
from rich.table import Table

from artifact.contract import (
    Array,
    Contract,
    ContractMismatch,
    nested_lists,
    read_contract,
)
from artifact.verify import agree
from model_in_image.source import ModelInImageSettings
from serving.inference.codecs.tensor_codec import DATATYPES, to_binary
from serving.server.app import create_app
from tests.artifacts import rewrite
from training.errors import TrainingError
from training.import_onnx import make_contract

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
# Kinds of numpy's own dtypes. The protocol does not support any other, such as bfloat16.
PLAIN = "biufOU"


@dataclass(frozen=True)
class Case:
    """A model, the inputs and published outputs of each data set, and the tolerance."""

    name: str
    model: bytes
    # Inputs and outputs, in the order of the graph.
    data_sets: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float


class Rejected(Exception):  # noqa: N818 - not an error of the test
    """The reason why a case is not served."""


def cases() -> Iterator[Case]:
    """Return all cases in the package onnx, sorted by name."""
    with warnings.catch_warnings():
        # numpy warns while onnx creates the cases with infinities.
        warnings.simplefilter("ignore")
        unsorted = [case for kind in KINDS for case in load_model_tests(kind=kind)]
    for case in sorted(unsorted, key=lambda case: case.name):
        if case.model is not None:
            model, data_sets = case.model, case.data_sets or []
        else:
            directory = Path(case.model_dir or "")
            model = onnx.load(directory / "model.onnx")
            data_sets = [_read(model, path) for path in sorted(directory.glob("test_data_set_*"))]
        arrays = [(_arrays(inputs), _arrays(outputs)) for inputs, outputs in data_sets]
        yield Case(case.name, model.SerializeToString(), arrays, case.rtol, case.atol)


def serve(case: Case, store: Path) -> None:
    """Publish and request a case. Raises Rejected, or AssertionError if outputs differ."""
    artifact = _publish(case, store)
    asyncio.run(_request(case, artifact))


def main() -> int:
    """Serve all cases; print the reason of each rejected case, and the number of each outcome."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    outcomes = Counter[str]()
    failures = []
    with tempfile.TemporaryDirectory() as directory:
        for number, case in enumerate(track(list(cases()), "", console=Console(stderr=True))):
            try:
                serve(case, Path(directory) / str(number))
            except Rejected as rejected:
                outcomes[f"rejected: {_summary(str(rejected))}"] += 1
                console.print(f"{case.name}: rejected: {rejected}")
            except Exception as error:  # noqa: BLE001 - reported as a failure
                failures.append(case.name)
                console.print(f"{case.name}: FAILED: {type(error).__name__}: {error}")
            else:
                outcomes["served"] += 1
    table = Table("ONNX's test cases", "outcome", title=f"onnx {onnx.__version__}")
    for outcome, count in outcomes.most_common():
        table.add_row(str(count), outcome)
    table.add_row(str(len(failures)), "failed")
    console.print(table)
    return 1 if failures else 0


def _publish(case: Case, store: Path) -> Path:
    """Publish a case as an artifact whose golden outputs are the published ones."""
    store.mkdir(exist_ok=True)
    file, sample = store / "model.onnx", store / "rows.npz"
    file.write_bytes(case.model)
    graph = onnx.load_model_from_string(case.model).graph
    inputs, outputs = case.data_sets[0]
    by_name = dict(zip(_input_names(graph), inputs, strict=False))
    arrays: dict[str, Any] = {
        name: _without_objects(value) for name, value in by_name.items() if _is_plain(value)
    }
    np.savez(sample, **arrays)
    try:
        artifact = Path(
            make_contract(
                onnx_file=file, sample=sample, name="case", version="1", store=store,
                purpose="a test",
            )
        )  # fmt: skip
    except TrainingError as error:
        raise Rejected(str(error).replace(f"{store}/", "")) from error
    contract = read_contract(artifact)
    published = {
        output.name: nested_lists(
            np.asarray(value, dtype=object if value.dtype.kind == "U" else None)
        )
        for output, value in zip(contract.outputs, outputs, strict=True)
    }
    golden = {"outputs": published, "rtol": case.rtol, "atol": case.atol}
    rewrite(artifact, golden=contract.golden.model_copy(update=golden))
    return artifact


async def _request(case: Case, artifact: Path) -> None:
    """Request all data sets of a case, as JSON and as binary data, and compare the outputs."""
    settings = ModelInImageSettings(model_dir=artifact, max_body_bytes=1 << 26)
    app = create_app(settings, artifact)
    try:
        async with app.running():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://case") as client:
                contract = read_contract(artifact)
                for inputs, outputs in case.data_sets:
                    for binary in (False, True):
                        actual = await _infer(client, contract, inputs, binary=binary)
                        _compare(case, contract, actual, outputs)
    except ContractMismatch as mismatch:
        raise Rejected("; ".join(mismatch.differences)) from mismatch


async def _infer(
    client: httpx.AsyncClient, contract: Contract, inputs: list[Any], *, binary: bool
) -> list[Array]:
    """Return the outputs of a request with JSON or with binary data."""
    tensors: list[dict[str, Any]] = []
    pieces: list[bytes] = []
    for tensor, value in zip(contract.inputs, inputs, strict=False):
        fields: dict[str, Any] = {
            "name": tensor.name,
            "datatype": DATATYPES[tensor.dtype],
            "shape": list(value.shape),
        }
        # JSON cannot represent NaN and infinities.
        if binary or (value.dtype.kind == "f" and not np.isfinite(value).all()):
            pieces.append(to_binary(value.astype(object) if value.dtype.kind == "U" else value))
            fields["parameters"] = {"binary_data_size": len(pieces[-1])}
        else:
            fields["data"] = value.ravel().tolist()
        tensors.append(fields)
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": binary}}).encode()
    response = await client.post(
        "/v2/models/case/infer",
        content=b"".join([head, *pieces]),
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert response.status_code == 200, response.text
    size = int(response.headers.get("Inference-Header-Content-Length", len(response.content)))
    body, binary_data = json.loads(response.content[:size]), response.content[size:]
    return [_array(contract, output, binary_data) for output in _with_offsets(body["outputs"])]


def _with_offsets(outputs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the outputs of a response with start and end of their binary data."""
    start = 0
    for output in outputs:
        size = output.get("parameters", {}).get("binary_data_size", 0)
        yield {**output, "start": start, "end": start + size}
        start += size


def _array(contract: Contract, output: dict[str, Any], binary_data: bytes) -> Array:
    (tensor,) = (tensor for tensor in contract.outputs if tensor.name == output["name"])
    dtype = object if tensor.dtype == "string" else np.dtype(tensor.dtype)
    if "data" in output:
        values = [np.nan if value is None else value for value in output["data"]]
        return np.array(values, dtype=dtype).reshape(output["shape"])
    data = binary_data[output["start"] : output["end"]]
    if dtype is object:
        strings, offset = [], 0
        while offset < len(data):
            size = int.from_bytes(data[offset : offset + 4], "little")
            strings.append(data[offset + 4 : offset + 4 + size].decode())
            offset += 4 + size
        return np.array(strings, dtype=object).reshape(output["shape"])
    return np.frombuffer(data, dtype).reshape(output["shape"])


def _compare(case: Case, contract: Contract, outputs: list[Array], published: list[Any]) -> None:
    for tensor, output, value in zip(contract.outputs, outputs, published, strict=True):
        actual, expected = output, np.asarray(value)
        assert actual.shape == expected.shape, (
            f"{tensor.name}: expected shape {expected.shape}, got {actual.shape}"
        )
        if expected.dtype.kind == "f" and np.isnan(actual).any():
            # In JSON, NaN and infinities are all null.
            expected, actual = (np.where(np.isfinite(x), x, np.nan) for x in (expected, actual))
        equal = agree(actual, expected, rtol=case.rtol, atol=case.atol)
        assert equal.all(), f"{tensor.name}: {(~equal).sum()} of {equal.size} values differ"


def _read(model: onnx.ModelProto, directory: Path) -> tuple[list[Any], list[Any]]:
    """Return the inputs and outputs of a data set; None for sequences and maps."""
    data_set = []
    for prefix, values in (("input", model.graph.input), ("output", model.graph.output)):
        files = sorted(
            directory.glob(f"{prefix}_*.pb"), key=lambda path: int(path.stem[len(prefix) + 1 :])
        )
        data_set.append(
            [
                numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes()))
                if value.type.HasField("tensor_type")
                else None
                for file, value in zip(files, values, strict=False)
            ]
        )
    return data_set[0], data_set[1]


def _arrays(values: Any) -> list[Any]:
    return [
        numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
        for value in values
    ]


def _input_names(graph: onnx.GraphProto) -> list[str]:
    constants = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name not in constants]


def _is_plain(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic) and value.dtype.kind in PLAIN


def _without_objects(value: Any) -> Array:
    """Return an array that numpy can save without pickling: strings as fixed-width text."""
    array = np.asarray(value)
    return array.astype(str) if array.dtype.kind == "O" else array


def _summary(reason: str) -> str:
    """Return the reason without the details of a single case."""
    for pattern, summary in (
        (r"ai\.onnx\.preview|training", "onnxruntime does not load it: a domain for training"),
        (r"does not load it", "onnxruntime does not load it"),
        (r"is (optional\()?(seq|map)\(", "a sequence or a map instead of a tensor"),
        (r"is tensor\((\w+)\)", "a datatype that the protocol does not support"),
        (r"the same rows", "it returns different outputs for the same rows: random"),
        (
            r"golden rows: output",
            "golden rows: the outputs of onnxruntime differ from the published ones",
        ),
        (r"does not run|do not run", "onnxruntime cannot run it with the published inputs"),
    ):
        if re.search(pattern, reason):
            return summary
    return reason


if __name__ == "__main__":
    sys.exit(main())
