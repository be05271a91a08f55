"""ONNX's own test cases, each made into an artifact and served: `make conformance`.

A case is a model, inputs, and the outputs that ONNX publishes for them, which become the golden
rows of its contract. So each is either refused, with the reason, or served over the Open
Inference Protocol, as JSON and as binary data, with the published outputs. Nothing in between:
anything else is a failure, and the exit status 1.
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
# What numpy itself has; what it has not, the protocol has not either.
PLAIN = "biufOU"


@dataclass(frozen=True)
class Case:
    """A model with inputs and the outputs that are published for them, and how near is right."""

    name: str
    model: bytes
    data_sets: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float


class Refused(Exception):  # noqa: N818 - an outcome
    """Why a case is not served."""


def cases() -> Iterator[Case]:
    """Every case that ONNX carries with it."""
    with warnings.catch_warnings():
        # Of numpy, while onnx makes the cases for infinities.
        warnings.simplefilter("ignore")
        found = [case for kind in KINDS for case in load_model_tests(kind=kind)]
    for case in sorted(found, key=lambda one: one.name):
        if case.model is not None:
            model, read = case.model, case.data_sets or []
        else:
            directory = Path(case.model_dir or "")
            model = onnx.load(directory / "model.onnx")
            read = [_read(model, one) for one in sorted(directory.glob("test_data_set_*"))]
        data_sets = [(_arrays(inputs), _arrays(outputs)) for inputs, outputs in read]
        yield Case(case.name, model.SerializeToString(), data_sets, case.rtol, case.atol)


def serve(case: Case, store: Path) -> None:
    """Serve a case. Raises Refused with the reason, AssertionError for anything in between."""
    artifact = _artifact(case, store)
    asyncio.run(_ask(case, artifact))


def main() -> int:
    """Serve all cases; print why some are refused, then how many of which."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    outcomes = Counter[str]()
    failures = []
    with tempfile.TemporaryDirectory() as directory:
        for number, case in enumerate(track(list(cases()), "", console=Console(stderr=True))):
            try:
                serve(case, Path(directory) / str(number))
            except Refused as refused:
                outcomes[f"refused: {_kind_of(str(refused))}"] += 1
                console.print(f"{case.name}: refused: {refused}")
            except Exception as error:  # noqa: BLE001 - it is what must not be
                failures.append(case.name)
                console.print(f"{case.name}: FAILED: {type(error).__name__}: {error}")
            else:
                outcomes["served"] += 1
    table = Table("ONNX's test cases", "outcome", title=f"onnx {onnx.__version__}")
    for outcome, count in outcomes.most_common():
        table.add_row(str(count), outcome)
    table.add_row(str(len(failures)), "neither")
    console.print(table)
    return 1 if failures else 0


def _artifact(case: Case, store: Path) -> Path:
    """Make a case an artifact whose golden rows are the published ones."""
    store.mkdir(exist_ok=True)
    file, sample = store / "model.onnx", store / "rows.npz"
    file.write_bytes(case.model)
    graph = onnx.load_model_from_string(case.model).graph
    inputs, outputs = case.data_sets[0]
    given = dict(zip(_names_of_inputs(graph), inputs, strict=False))
    arrays: dict[str, Any] = {name: _as_text(one) for name, one in given.items() if _is_plain(one)}
    np.savez(sample, **arrays)
    try:
        made = make_contract(
            onnx_file=file, sample=sample, name="case", version="1", store=store, purpose="a test"
        )
    except TrainingError as error:
        raise Refused(str(error).replace(f"{store}/", "")) from error
    contract = read_contract(Path(made))
    published = {
        output.name: nested_lists(
            np.asarray(value, dtype=object if value.dtype.kind == "U" else None)
        )
        for output, value in zip(contract.outputs, outputs, strict=True)
    }
    golden = {"outputs": published, "rtol": case.rtol, "atol": case.atol}
    rewrite(Path(made), golden=contract.golden.model_copy(update=golden))
    return Path(made)


async def _ask(case: Case, artifact: Path) -> None:
    settings = ModelInImageSettings(model_dir=artifact, max_body_bytes=1 << 26)
    app = create_app(settings, artifact)
    try:
        async with app.running():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://case") as client:
                contract = read_contract(artifact)
                for inputs, outputs in case.data_sets:
                    for binary in (False, True):
                        got = await _infer(client, contract, inputs, binary=binary)
                        _compare(case, contract, got, outputs)
    except ContractMismatch as mismatch:
        raise Refused("; ".join(mismatch.differences)) from mismatch


async def _infer(
    client: httpx.AsyncClient, contract: Contract, inputs: list[Any], *, binary: bool
) -> list[Array]:
    """Return what the server answers to a request with JSON or with binary data."""
    described: list[dict[str, Any]] = []
    pieces: list[bytes] = []
    for tensor, value in zip(contract.inputs, inputs, strict=False):
        about: dict[str, Any] = {
            "name": tensor.name,
            "datatype": DATATYPES[tensor.dtype],
            "shape": list(value.shape),
        }
        # JSON has no word for what is no number.
        if binary or (value.dtype.kind == "f" and not np.isfinite(value).all()):
            pieces.append(to_binary(value.astype(object) if value.dtype.kind == "U" else value))
            about["parameters"] = {"binary_data_size": len(pieces[-1])}
        else:
            about["data"] = value.ravel().tolist()
        described.append(about)
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": binary}}).encode()
    answer = await client.post(
        "/v2/models/case/infer",
        content=b"".join([head, *pieces]),
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert answer.status_code == 200, answer.text
    size = int(answer.headers.get("Inference-Header-Content-Length", len(answer.content)))
    body, rest = json.loads(answer.content[:size]), answer.content[size:]
    return [_array(contract, output, rest) for output in _with_offsets(body["outputs"])]


def _with_offsets(outputs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    start = 0
    for output in outputs:
        size = output.get("parameters", {}).get("binary_data_size", 0)
        yield {**output, "start": start, "end": start + size}
        start += size


def _array(contract: Contract, output: dict[str, Any], rest: bytes) -> Array:
    (tensor,) = (one for one in contract.outputs if one.name == output["name"])
    dtype = object if tensor.dtype == "string" else np.dtype(tensor.dtype)
    if "data" in output:
        values = [np.nan if value is None else value for value in output["data"]]
        return np.array(values, dtype=dtype).reshape(output["shape"])
    data = rest[output["start"] : output["end"]]
    if dtype is object:
        strings, at = [], 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 4], "little")
            strings.append(data[at + 4 : at + 4 + size].decode())
            at += 4 + size
        return np.array(strings, dtype=object).reshape(output["shape"])
    return np.frombuffer(data, dtype).reshape(output["shape"])


def _compare(case: Case, contract: Contract, got: list[Array], published: list[Any]) -> None:
    for tensor, array, value in zip(contract.outputs, got, published, strict=True):
        came, expected = array, np.asarray(value)
        assert came.shape == expected.shape, f"{tensor.name}: {came.shape}, not {expected.shape}"
        if expected.dtype.kind == "f" and np.isnan(came).any():
            # Null in JSON.
            expected, came = (np.where(np.isfinite(x), x, np.nan) for x in (expected, came))
        right = agree(came, expected, rtol=case.rtol, atol=case.atol)
        assert right.all(), f"{tensor.name}: {(~right).sum()} of {right.size} values differ"


def _read(model: onnx.ModelProto, directory: Path) -> tuple[list[Any], list[Any]]:
    """A data set's inputs and outputs; None for what is no tensor."""
    read = []
    for what, values in (("input", model.graph.input), ("output", model.graph.output)):
        files = sorted(
            directory.glob(f"{what}_*.pb"), key=lambda path: int(path.stem[len(what) + 1 :])
        )
        read.append(
            [
                numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes()))
                if value.type.HasField("tensor_type")
                else None
                for file, value in zip(files, values, strict=False)
            ]
        )
    return read[0], read[1]


def _arrays(values: Any) -> list[Any]:
    return [
        numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
        for value in values
    ]


def _names_of_inputs(graph: onnx.GraphProto) -> list[str]:
    constants = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name not in constants]


def _is_plain(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic) and value.dtype.kind in PLAIN


def _as_text(value: Any) -> Array:
    """Strings as numpy stores them without pickling; the rest as it is."""
    array = np.asarray(value)
    return array.astype(str) if array.dtype.kind == "O" else array


def _kind_of(reason: str) -> str:
    """A reason without what only one case has."""
    for pattern, kind in (
        (r"ai\.onnx\.preview|training", "onnxruntime does not load it: a domain for training"),
        (r"does not load it", "onnxruntime does not load it"),
        (r"is (optional\()?(seq|map)\(", "a sequence or a map, which is no tensor"),
        (r"is tensor\((\w+)\)", "a type that the protocol does not have"),
        (r"another one in", "it answers the same rows differently: random"),
        (r"golden rows: output", "golden rows: onnxruntime answers otherwise than published"),
        (r"does not run|do not run", "it does not run with the published inputs"),
    ):
        if re.search(pattern, reason):
            return kind
    return reason


if __name__ == "__main__":
    sys.exit(main())
