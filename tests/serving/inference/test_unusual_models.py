"""Tests of models with unusual shapes, inputs, or names.

The application runs in this process: a server for each test's own model would be slow.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model_in_image.source import ModelInImageSettings
from serving.server.app import App, create_app
from tests.onnx_files import FLOAT, INT64, save
from training.errors import TrainingError
from training.import_onnx import make_contract

UseClient = Callable[[httpx.AsyncClient], Awaitable[Any]]


def app_of(onnx_file: Path, **options: Any) -> App:
    """Publish a file as an artifact, and return the application that serves it."""
    store = onnx_file.parent / "store"
    artifact = make_contract(
        onnx_file=onnx_file, store=store, purpose="a test",
        **{"name": "odd", "version": "1", **options},
    )  # fmt: skip
    return create_app(ModelInImageSettings(model_dir=Path(artifact)), Path(artifact))


def run(app: App, use_client: UseClient) -> Any:
    """Start the application, and return the result of use_client()."""

    async def with_client() -> Any:
        async with app.running():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://odd") as client:
                return await use_client(client)

    return asyncio.run(with_client())


async def example(client: httpx.AsyncClient) -> httpx.Response:
    """Send the example request of /openapi.json."""
    document = (await client.get("/openapi.json")).json()
    (path,) = (path for path in document["paths"] if path.endswith("/odd/infer"))
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    return await client.post(path, json=content["example"])


def test_model_without_inputs_is_served(tmp_path: Path) -> None:
    file = save(
        tmp_path / "m.onnx",
        [],
        [("y", FLOAT, [3])],
        [("Identity", ["c"], ["y"])],
        [("c", np.arange(3, dtype=np.float32))],
    )

    async def use_client(client: httpx.AsyncClient) -> list[httpx.Response]:
        path, raw = "/v2/models/odd/infer", {"Inference-Header-Content-Length": "0"}
        return [
            await client.post(path, json={"inputs": []}),
            await client.post(path, content=b"", headers=raw),
            await client.get("/metadata"),
        ]

    valid, raw, metadata = run(app_of(file), use_client)
    assert valid.json()["outputs"][0]["data"] == [0, 1, 2]
    assert raw.status_code == 400
    assert metadata.json()["data_sample"] is None


def test_optional_scalar_input_is_part_of_the_sample(tmp_path: Path) -> None:
    """The sample is the first row of each input, but a scalar has no rows."""
    file = save(
        tmp_path / "m.onnx",
        [("x", FLOAT, ["N", 2]), ("by", FLOAT, [])],
        [("y", FLOAT, ["N", 2])],
        [("Mul", ["x", "by"], ["y"])],
        [("by", np.array(2, np.float32))],
    )
    sample = tmp_path / "rows.npz"
    np.savez(sample, x=np.full((3, 2), 1, np.float32), by=np.array(5, np.float32))

    async def use_client(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await example(client),
            await client.get("/metadata"),
            await client.get("/predict/test"),
        ]

    for response in run(app_of(file, sample=sample), use_client):
        assert response.status_code == 200


@pytest.mark.parametrize(("name", "version"), [("infer", "1"), ("odd", "infer")])
def test_infer_may_be_the_name_or_version_of_a_model(
    tmp_path: Path, name: str, version: str
) -> None:
    """Paths that end with /infer are not all predictions."""
    file = save(
        tmp_path / "m.onnx",
        [("x", FLOAT, ["N", 2])],
        [("y", FLOAT, ["N", 2])],
        [("Neg", ["x"], ["y"])],
    )

    async def use_client(client: httpx.AsyncClient) -> list[httpx.Response]:
        path = f"/v2/models/{name}/versions/{version}"
        body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
        return [
            await client.get(path),
            await client.get(f"/v2/models/{name}"),
            await client.post(f"{path}/infer", json=body),
        ]

    for response in run(app_of(file, name=name, version=version), use_client):
        assert response.status_code == 200


def test_dimension_of_zero_is_accepted_nested_flat_and_raw(tmp_path: Path) -> None:
    file = save(
        tmp_path / "m.onnx",
        [("x", FLOAT, [2, 0, 3])],
        [("y", FLOAT, [2, 0, 3])],
        [("Neg", ["x"], ["y"])],
    )

    async def use_client(client: httpx.AsyncClient) -> list[httpx.Response]:
        path, fields = "/v2/models/odd/infer", {"name": "x", "shape": [2, 0, 3], "datatype": "FP32"}
        headers = {"Inference-Header-Content-Length": "0"}
        return [
            await client.post(path, json={"inputs": [{**fields, "data": []}]}),
            await client.post(path, json={"inputs": [{**fields, "data": [[], []]}]}),
            await client.post(path, content=b"", headers=headers),
            await example(client),
        ]

    for response in run(app_of(file), use_client):
        assert response.status_code == 200, response.text


def test_golden_rows_may_have_empty_outputs(tmp_path: Path) -> None:
    """As of a detector that detects nothing in generated inputs."""
    file = save(
        tmp_path / "m.onnx",
        [("x", FLOAT, ["N", 3])],
        [("y", FLOAT, ["M", 3])],
        [("Compress", ["x", "none"], ["y"])],
        [("none", np.array([False]))],
    )

    response = run(app_of(file), example)

    # Compress without an axis selects values, here none.
    assert response.status_code == 200


def test_model_that_transposes_its_rows_does_not_support_predict(tmp_path: Path) -> None:
    """Two rows would get three predictions."""
    file = save(
        tmp_path / "m.onnx",
        [("x", FLOAT, ["N", "M"])],
        [("y", FLOAT, ["M", "N"])],
        [("Transpose", ["x"], ["y"])],
    )

    async def use_client(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/predict", json={"data": [[1, 2, 3], [4, 5, 6]]})

    assert run(app_of(file), use_client).status_code == 404


def test_input_of_unknown_rank_is_rejected_before_it_is_published(tmp_path: Path) -> None:
    """onnxruntime reports it as a scalar, so the server would reject all other shapes."""
    file = save(
        tmp_path / "m.onnx", [("x", FLOAT, None)], [("y", FLOAT, None)], [("Neg", ["x"], ["y"])]
    )

    with pytest.raises(TrainingError, match=r'input "x" has no shape, expected one'):
        app_of(file)


def test_model_that_was_slow_once_is_not_run_on_the_event_loop_again(tmp_path: Path) -> None:
    """The time of the golden rows does not bound the time of other values."""
    file = save(
        tmp_path / "m.onnx",
        [("n", INT64, [1])],
        [("y", FLOAT, [])],
        [("ConstantOfShape", ["n"], ["many"]), ("ReduceSum", ["many"], ["sum"]),
         ("Squeeze", ["sum"], ["y"])],
    )  # fmt: skip

    async def use_client(client: httpx.AsyncClient) -> int:
        async def infer() -> httpx.Response:
            fields = {"name": "n", "shape": [1], "datatype": "INT64", "data": [10**8]}
            return await client.post("/v2/models/odd/infer", json={"inputs": [fields]})

        assert (await infer()).status_code == 200
        again = asyncio.create_task(infer())
        turns = 0
        while not again.done():
            # Only this lets the event loop of the application turn.
            await asyncio.sleep(0)
            assert (await client.get("/v2/health/live")).status_code == 200
            turns += 1
        return turns

    assert run(app_of(file), use_client) > 5
