"""Tests of batches: each request gets its own result, whatever else is in the batch."""

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from artifact.contract import Array, read_contract
from serving.errors import RequestError
from serving.inference.batcher import Batcher
from serving.inference.model import Model
from serving.inference.request import InferenceRequest
from serving.metrics.counters import Counters
from serving.metrics.metrics import Metrics
from tests.onnx_files import FLOAT, save, save_table
from training.import_onnx import make_contract

MAX_ROWS = 16


class Served:
    """A model and its batcher, for requests that wait at the same time.

    seconds_per_value: 0 runs on the event loop, 1 on the thread.
    """

    def __init__(self, artifact: Path, *, seconds_per_value: float = 0.0) -> None:
        opened = Model.open(artifact, read_contract(artifact), max_rows=MAX_ROWS)
        self.model = dataclasses.replace(opened, seconds_per_value=seconds_per_value)
        self.metrics = Metrics(Counters(1))
        self.batcher = Batcher(self.metrics, max_rows=MAX_ROWS)

    async def predict(self, rows: Array) -> list[Array]:
        self.batcher.serve(self.model)
        (name,) = (tensor.name for tensor in self.model.contract.inputs)
        return await self.batcher.run(
            self.model, InferenceRequest({name: rows}, self.model.output_names)
        )

    def predict_all(self, requests: list[Array]) -> list[list[Array] | BaseException]:
        async def gather() -> list[list[Array] | BaseException]:
            return await asyncio.gather(*map(self.predict, requests), return_exceptions=True)

        results = asyncio.run(gather())
        self.batcher.close()
        return results

    @property
    def runs(self) -> int:
        return int(sum(self.metrics.batch_rows.counts()))


@pytest.fixture
def requests(store: Path) -> list[Array]:
    """Ten different requests of one to four rows each."""
    (rows,) = read_contract(store / "iris" / "1").golden_inputs().values()
    return [rows[number : number + 1 + number % 4] for number in range(10)]


@pytest.mark.parametrize("seconds_per_value", [0.0, 1.0])
def test_batched_requests_get_the_same_results_as_alone(
    store: Path, requests: list[Array], seconds_per_value: float
) -> None:
    """Requests of one turn of the event loop, or that waited for the thread, form a batch."""
    served = Served(store / "iris" / "1", seconds_per_value=seconds_per_value)

    results = served.predict_all(requests)

    assert served.runs < len(requests) / 2
    golden = served.model.contract.golden
    for rows, result in zip(requests, results, strict=True):
        assert not isinstance(result, BaseException)
        (batched,), (alone,) = result, served.model.run({"input": rows}, served.model.output_names)
        np.testing.assert_allclose(batched, alone, golden.rtol, golden.atol)
        assert batched.argmax(axis=1).tolist() == alone.argmax(axis=1).tolist()


def test_no_batch_has_more_rows_than_the_limit(store: Path) -> None:
    """A batch delays other requests, so its size must not grow with their number."""
    served = Served(store / "iris" / "1")
    (rows,) = served.model.contract.golden_inputs().values()

    served.predict_all([rows[:7]] * 9)

    bounds = served.metrics.batch_rows.bounds
    sizes = [bound for bound, count in zip(bounds, served.metrics.batch_rows.counts(), strict=False)
            if count]  # fmt: skip
    assert max(sizes) == MAX_ROWS
    assert served.metrics.rows.total() == 63


def test_single_request_does_not_wait_for_further_requests(
    store: Path, requests: list[Array]
) -> None:
    """It runs in the turn of the event loop after the one that submitted it."""
    served = Served(store / "iris" / "1")

    async def predict_in_sequence() -> None:
        for rows in requests:
            task = asyncio.create_task(served.predict(rows))
            for _ in range(3):  # submit, run, resume the task
                await asyncio.sleep(0)
            assert task.done()

    asyncio.run(predict_in_sequence())

    assert served.runs == len(requests)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A model that looks up an index in a table. It fails for an index outside of the table."""
    file = save_table(tmp_path / "table.onnx")
    store = tmp_path / "store"
    return Path(
        make_contract(onnx_file=file, name="table", version="1", store=store, purpose="a test")
    )


@pytest.mark.parametrize("seconds_per_value", [0.0, 1.0])
def test_failing_request_does_not_fail_its_batch(table: Path, seconds_per_value: float) -> None:
    """The batch fails, so each of its requests is run alone."""
    served = Served(table, seconds_per_value=seconds_per_value)
    indices = [0, 1, 99, 3, 4]

    results = served.predict_all([np.array([index], np.int64) for index in indices])

    for index, result in zip(indices, results, strict=True):
        if index == 99:
            assert isinstance(result, RequestError)
            assert result.status == 400
        else:
            assert not isinstance(result, BaseException)
            assert result[0].tolist() == [index]


def test_requests_with_rows_of_different_shapes_are_not_batched(tmp_path: Path) -> None:
    """Their arrays cannot be concatenated."""
    file = save(
        tmp_path / "wide.onnx",
        [("x", FLOAT, ["N", "width"])],
        [("y", FLOAT, ["N", "width"])],
        [("Neg", ["x"], ["y"])],
    )
    artifact = make_contract(
        onnx_file=file, name="wide", version="1", store=tmp_path / "store", purpose="a test"
    )
    served = Served(Path(artifact))
    requests = [np.full((1, width), width, np.float32) for width in (1, 2, 3, 2, 1, 3)]

    results = served.predict_all(requests)

    for rows, result in zip(requests, results, strict=True):
        assert not isinstance(result, BaseException)
        np.testing.assert_array_equal(result[0], -rows)


def test_inputs_with_different_numbers_of_rows_are_not_batched(tmp_path: Path) -> None:
    """Unnamed dimensions allow them; concatenated, rows of different requests would be paired."""
    file = save(
        tmp_path / "two.onnx",
        [("a", FLOAT, [None, 1]), ("b", FLOAT, [None, 1])],
        [("x", FLOAT, [None, 1]), ("y", FLOAT, [None, 1])],
        [("Neg", ["a"], ["x"]), ("Neg", ["b"], ["y"])],
    )
    artifact = make_contract(
        onnx_file=file, name="two", version="1", store=tmp_path / "store", purpose="a test"
    )
    served = Served(Path(artifact))
    requests = [
        {"a": np.full((a_rows, 1), index, np.float32), "b": np.full((b_rows, 1), index, np.float32)}
        for index, (a_rows, b_rows) in enumerate([(2, 3), (1, 1), (3, 2)])
    ]

    async def gather() -> list[list[Array]]:
        served.batcher.serve(served.model)
        outputs = served.model.output_names
        return await asyncio.gather(
            *(
                served.batcher.run(served.model, InferenceRequest(inputs, outputs))
                for inputs in requests
            )
        )

    assert served.model.batches
    for inputs, (x, y) in zip(requests, asyncio.run(gather()), strict=True):
        np.testing.assert_array_equal(x, -inputs["a"])
        np.testing.assert_array_equal(y, -inputs["b"])


def test_model_whose_rows_depend_on_each_other_gets_no_batches(own_store: Path) -> None:
    """It subtracts the mean of all rows: in a batch, the mean of other requests' rows."""
    served = Served(own_store / "centered" / "1")
    requests = [np.full((1, 2), number, np.float32) for number in range(6)]

    results = served.predict_all(requests)

    assert served.runs == len(requests)
    for result in results:
        assert not isinstance(result, BaseException)
        assert result[0].tolist() == [[0, 0]]


def test_disconnected_client_does_not_fail_its_batch(store: Path, requests: list[Array]) -> None:
    """Its task is cancelled while the request waits."""
    served = Served(store / "iris" / "1", seconds_per_value=1.0)

    async def cancel_second() -> list[Array]:
        first, second, third = (asyncio.create_task(served.predict(rows)) for rows in requests[:3])
        await asyncio.sleep(0)
        second.cancel()
        await first
        return await third

    (result,) = asyncio.run(cancel_second())
    served.batcher.close()

    assert len(result) == len(requests[2])


def test_long_run_does_not_block_the_event_loop(store: Path, requests: list[Array]) -> None:
    """Health probes must be answered meanwhile."""
    served = Served(store / "iris" / "1", seconds_per_value=1.0)

    async def count_turns() -> int:
        task = asyncio.create_task(served.predict(requests[0]))
        turns = 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(count_turns()) > 2
    served.batcher.close()
