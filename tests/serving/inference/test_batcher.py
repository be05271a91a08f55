"""Requests that wait share a run, and none notices it but by the time it takes."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
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
from tests.onnx_files import FLOAT, INT64, save
from training.import_onnx import make_contract

MAX_ROWS = 16
Ask = Callable[[Array], Awaitable[list[Array]]]


class Served:
    """A model behind a batcher, with requests that are all under way at once."""

    def __init__(self, artifact: Path, *, seconds_per_value: float = 0.0) -> None:
        opened = Model.open(artifact, read_contract(artifact), max_rows=MAX_ROWS)
        self.model = dataclasses.replace(opened, seconds_per_value=seconds_per_value)
        self.metrics = Metrics(Counters(1))
        self.batcher = Batcher(self.metrics, max_rows=MAX_ROWS)

    async def ask(self, rows: Array) -> list[Array]:
        self.batcher.serve(self.model)
        (name,) = (tensor.name for tensor in self.model.contract.inputs)
        return await self.batcher.run(
            self.model, InferenceRequest({name: rows}, self.model.output_names)
        )

    def ask_all(self, requests: list[Array]) -> list[list[Array] | BaseException]:
        async def together() -> list[list[Array] | BaseException]:
            return await asyncio.gather(*map(self.ask, requests), return_exceptions=True)

        answers = asyncio.run(together())
        self.batcher.close()
        return answers

    @property
    def runs(self) -> int:
        return int(sum(self.metrics.batch_rows.counts()))


@pytest.fixture
def requests(store: Path) -> list[Array]:
    """Ten requests of one to four rows each, of which no two are alike."""
    (rows,) = read_contract(store / "iris" / "1").golden_inputs().values()
    return [rows[number : number + 1 + number % 4] for number in range(10)]


@pytest.mark.parametrize("seconds_per_value", [0.0, 1.0])
def test_requests_that_wait_share_runs_and_get_what_they_would_alone(
    store: Path, requests: list[Array], seconds_per_value: float
) -> None:
    """In a turn of the event loop, or while the thread runs what came before."""
    served = Served(store / "iris" / "1", seconds_per_value=seconds_per_value)

    answers = served.ask_all(requests)

    assert served.runs < len(requests) / 2
    golden = served.model.contract.golden
    for rows, answer in zip(requests, answers, strict=True):
        assert not isinstance(answer, BaseException)
        (got,), (alone,) = answer, served.model.run({"input": rows}, served.model.output_names)
        np.testing.assert_allclose(got, alone, golden.rtol, golden.atol)
        assert got.argmax(axis=1).tolist() == alone.argmax(axis=1).tolist()


def test_no_run_has_more_rows_than_the_limit(store: Path) -> None:
    """However many wait: a neighbour is delayed by no more than that."""
    served = Served(store / "iris" / "1")
    (rows,) = served.model.contract.golden_inputs().values()

    served.ask_all([rows[:7]] * 9)

    bounds = served.metrics.batch_rows.bounds
    most = [bound for bound, count in zip(bounds, served.metrics.batch_rows.counts(), strict=False)
            if count]  # fmt: skip
    assert max(most) == MAX_ROWS
    assert served.metrics.rows.total() == 63


def test_a_request_that_is_alone_does_not_wait_for_others(
    store: Path, requests: list[Array]
) -> None:
    """It is answered in the turn of the event loop after the one that it came in."""
    served = Served(store / "iris" / "1")

    async def one_after_the_other() -> None:
        for rows in requests:
            asked = asyncio.create_task(served.ask(rows))
            for _ in range(3):  # it begins, it runs, it is told
                await asyncio.sleep(0)
            assert asked.done()

    asyncio.run(one_after_the_other())

    assert served.runs == len(requests)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A model that takes what a table has at an index: it fails for one that is not there."""
    file = save(
        tmp_path / "table.onnx",
        [("index", INT64, ["N"])],
        [("value", FLOAT, ["N"])],
        [("Gather", ["table", "index"], ["value"])],
        [("table", np.arange(5, dtype=np.float32))],
    )
    store = tmp_path / "store"
    return Path(
        make_contract(onnx_file=file, name="table", version="1", store=store, purpose="a test")
    )


@pytest.mark.parametrize("seconds_per_value", [0.0, 1.0])
def test_a_request_that_fails_fails_alone(table: Path, seconds_per_value: float) -> None:
    served = Served(table, seconds_per_value=seconds_per_value)
    indices = [0, 1, 99, 3, 4]

    answers = served.ask_all([np.array([index], np.int64) for index in indices])

    for index, answer in zip(indices, answers, strict=True):
        if index == 99:
            assert isinstance(answer, RequestError)
            assert answer.status == 400
        else:
            assert not isinstance(answer, BaseException)
            assert answer[0].tolist() == [index]


def test_requests_of_other_shapes_are_other_runs(tmp_path: Path) -> None:
    """But for their rows they must be alike."""
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

    answers = served.ask_all(requests)

    for rows, answer in zip(requests, answers, strict=True):
        assert not isinstance(answer, BaseException)
        np.testing.assert_array_equal(answer[0], -rows)


def test_inputs_that_have_not_as_many_rows_are_no_neighbours(tmp_path: Path) -> None:
    """Where the contract names no dimension, each input of a request has its own."""
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
        {"a": np.full((rows, 1), at, np.float32), "b": np.full((others, 1), at, np.float32)}
        for at, (rows, others) in enumerate([(2, 3), (1, 1), (3, 2)])
    ]

    async def together() -> list[list[Array]]:
        served.batcher.serve(served.model)
        asked = [InferenceRequest(inputs, served.model.output_names) for inputs in requests]
        return await asyncio.gather(*(served.batcher.run(served.model, one) for one in asked))

    assert served.model.batches
    for inputs, (x, y) in zip(requests, asyncio.run(together()), strict=True):
        np.testing.assert_array_equal(x, -inputs["a"])
        np.testing.assert_array_equal(y, -inputs["b"])


def test_rows_that_depend_on_each_other_do_not_share_a_run(own_store: Path) -> None:
    served = Served(own_store / "centered" / "1")
    requests = [np.full((1, 2), number, np.float32) for number in range(6)]

    answers = served.ask_all(requests)

    assert served.runs == len(requests)
    for answer in answers:
        assert not isinstance(answer, BaseException)
        assert answer[0].tolist() == [[0, 0]]


def test_whoever_went_away_is_no_hindrance(store: Path, requests: list[Array]) -> None:
    served = Served(store / "iris" / "1", seconds_per_value=1.0)

    async def cancel_one() -> list[Array]:
        first, second, third = (asyncio.create_task(served.ask(rows)) for rows in requests[:3])
        await asyncio.sleep(0)
        second.cancel()
        await first
        return await third

    (answer,) = asyncio.run(cancel_one())
    served.batcher.close()

    assert len(answer) == len(requests[2])


def test_a_request_in_the_thread_keeps_the_loop_free(store: Path, requests: list[Array]) -> None:
    """While a long run goes on, everything else of the process does, too."""
    served = Served(store / "iris" / "1", seconds_per_value=1.0)

    async def count_turns() -> int:
        asked = asyncio.create_task(served.ask(requests[0]))
        turns = 0
        while not asked.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(count_turns()) > 2
    served.batcher.close()
