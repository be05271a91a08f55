"""Models that nobody expects, served all the same: in-process, for each is of one test only."""

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

Ask = Callable[[httpx.AsyncClient], Awaitable[Any]]


def app_of(onnx_file: Path, **options: Any) -> App:
    """The application of a file's artifact."""
    store = onnx_file.parent / "store"
    made = make_contract(
        onnx_file=onnx_file, store=store, purpose="a test",
        **{"name": "odd", "version": "1", **options},
    )  # fmt: skip
    return create_app(ModelInImageSettings(model_dir=Path(made)), Path(made))


def asked(app: App, ask: Ask) -> Any:
    async def with_a_client() -> Any:
        async with app.running():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://odd") as client:
                return await ask(client)

    return asyncio.run(with_a_client())


async def example(client: httpx.AsyncClient) -> httpx.Response:
    """What is answered to the example that /openapi.json has."""
    document = (await client.get("/openapi.json")).json()
    (path,) = (one for one in document["paths"] if one.endswith("/odd/infer"))
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    return await client.post(path, json=content["example"])


def test_a_model_without_inputs_answers_what_it_always_does(tmp_path: Path) -> None:
    file = save(
        tmp_path / "m.onnx",
        [],
        [("y", FLOAT, [3])],
        [("Identity", ["c"], ["y"])],
        [("c", np.arange(3, dtype=np.float32))],
    )

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        path, raw = "/v2/models/odd/infer", {"Inference-Header-Content-Length": "0"}
        return [
            await client.post(path, json={"inputs": []}),
            await client.post(path, content=b"", headers=raw),
            await client.get("/metadata"),
        ]

    right, raw, about = asked(app_of(file), ask)
    assert right.json()["outputs"][0]["data"] == [0, 1, 2]
    assert raw.status_code == 400
    assert about.json()["data_sample"] is None


def test_an_input_with_a_default_is_part_of_the_sample_whole(tmp_path: Path) -> None:
    """It has no rows that could be cut."""
    file = save(
        tmp_path / "m.onnx",
        [("x", FLOAT, ["N", 2]), ("by", FLOAT, [])],
        [("y", FLOAT, ["N", 2])],
        [("Mul", ["x", "by"], ["y"])],
        [("by", np.array(2, np.float32))],
    )
    sample = tmp_path / "rows.npz"
    np.savez(sample, x=np.ones((3, 2), np.float32), by=np.array(5, np.float32))

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await example(client),
            await client.get("/metadata"),
            await client.get("/predict/test"),
        ]

    for answer in asked(app_of(file, sample=sample), ask):
        assert answer.status_code == 200


@pytest.mark.parametrize(("name", "version"), [("infer", "1"), ("odd", "infer")])
def test_infer_may_be_a_name(tmp_path: Path, name: str, version: str) -> None:
    file = save(
        tmp_path / "m.onnx",
        [("x", FLOAT, ["N", 2])],
        [("y", FLOAT, ["N", 2])],
        [("Neg", ["x"], ["y"])],
    )

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        path = f"/v2/models/{name}/versions/{version}"
        body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
        return [
            await client.get(path),
            await client.get(f"/v2/models/{name}"),
            await client.post(f"{path}/infer", json=body),
        ]

    for answer in asked(app_of(file, name=name, version=version), ask):
        assert answer.status_code == 200


def test_a_dimension_of_zero_is_nested_flat_and_raw(tmp_path: Path) -> None:
    file = save(
        tmp_path / "m.onnx",
        [("x", FLOAT, [2, 0, 3])],
        [("y", FLOAT, [2, 0, 3])],
        [("Neg", ["x"], ["y"])],
    )

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        path, about = "/v2/models/odd/infer", {"name": "x", "shape": [2, 0, 3], "datatype": "FP32"}
        headers = {"Inference-Header-Content-Length": "0"}
        return [
            await client.post(path, json={"inputs": [{**about, "data": []}]}),
            await client.post(path, json={"inputs": [{**about, "data": [[], []]}]}),
            await client.post(path, content=b"", headers=headers),
            await example(client),
        ]

    for answer in asked(app_of(file), ask):
        assert answer.status_code == 200, answer.text


def test_golden_rows_without_outputs_are_golden_rows(tmp_path: Path) -> None:
    """A detector that finds nothing in what was generated."""
    file = save(
        tmp_path / "m.onnx",
        [("x", FLOAT, ["N", 3])],
        [("y", FLOAT, ["M", 3])],
        [("Compress", ["x", "none"], ["y"])],
        [("none", np.array([False]))],
    )

    answer = asked(app_of(file), example)

    # Without an axis it takes of the values, so this one has none.
    assert answer.status_code == 200


def test_rows_that_become_columns_are_not_for_predict(tmp_path: Path) -> None:
    """Two rows would get three predictions."""
    file = save(
        tmp_path / "m.onnx",
        [("x", FLOAT, ["N", "M"])],
        [("y", FLOAT, ["M", "N"])],
        [("Transpose", ["x"], ["y"])],
    )

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/predict", json={"data": [[1, 2, 3], [4, 5, 6]]})

    assert asked(app_of(file), ask).status_code == 404


def test_an_input_of_unknown_rank_is_refused_before_it_is_published(tmp_path: Path) -> None:
    """onnxruntime shows it as a scalar, and nothing else would be taken."""
    file = save(
        tmp_path / "m.onnx", [("x", FLOAT, None)], [("y", FLOAT, None)], [("Neg", ["x"], ["y"])]
    )

    with pytest.raises(TrainingError, match=r'input "x" has no shape, expected one'):
        app_of(file)


def test_a_model_that_was_slow_once_is_not_run_on_the_event_loop_again(tmp_path: Path) -> None:
    """What a golden row costs does not tell what a value can make a model do."""
    file = save(
        tmp_path / "m.onnx",
        [("n", INT64, [1])],
        [("y", FLOAT, [])],
        [("ConstantOfShape", ["n"], ["many"]), ("ReduceSum", ["many"], ["sum"]),
         ("Squeeze", ["sum"], ["y"])],
    )  # fmt: skip

    async def ask(client: httpx.AsyncClient) -> int:
        async def infer() -> httpx.Response:
            about = {"name": "n", "shape": [1], "datatype": "INT64", "data": [10**8]}
            return await client.post("/v2/models/odd/infer", json={"inputs": [about]})

        assert (await infer()).status_code == 200
        again = asyncio.create_task(infer())
        turns = 0
        while not again.done():
            # In-process nothing else would let the event loop turn.
            await asyncio.sleep(0)
            assert (await client.get("/v2/health/live")).status_code == 200
            turns += 1
        return turns

    assert asked(app_of(file), ask) > 5
