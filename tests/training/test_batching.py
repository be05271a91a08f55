"""Whether requests may share a run of a model: what the tensors allow, and what a run shows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.contract import Contract, read_contract
from tests.onnx_files import FLOAT, STRING, save
from training.errors import TrainingError
from training.own import make_contract

ROWS = [("x", FLOAT, ["N", 2])]


def batches(onnx_file: Path, **options: Any) -> bool:
    """What the contract of a file says."""
    store = onnx_file.parent / "store"
    made = make_contract(
        onnx_file=onnx_file, name="own", version="1", store=store, purpose="a test", **options
    )
    contract: Contract = read_contract(Path(made))
    assert contract.batching is not None
    return contract.batches


def rows_alone(path: Path) -> Path:
    return save(path / "m.onnx", ROWS, [("y", FLOAT, ["N", 2])], [("Neg", ["x"], ["y"])])


def test_rows_that_are_answered_by_themselves_share_a_run(tmp_path: Path) -> None:
    assert batches(rows_alone(tmp_path))


def test_rows_that_depend_on_each_other_do_not(tmp_path: Path) -> None:
    """The tensors would allow it; a run with other rows shows it."""
    nodes = [("ReduceMean", ["x"], ["mean"]), ("Sub", ["x", "mean"], ["y"])]

    assert not batches(save(tmp_path / "m.onnx", ROWS, [("y", FLOAT, ["N", 2])], nodes))


def test_one_row_beside_a_row_that_does_not_run_is_no_reason_to_refuse(tmp_path: Path) -> None:
    """A model whose rows are all of one kind cannot be tried with others: they stay apart."""
    model = save(
        tmp_path / "m.onnx",
        [("x", FLOAT, ["N"])],
        [("y", FLOAT, ["N", 1])],
        [("Reshape", ["x", "one"], ["y"])],
        [("one", np.array([1, 1], np.int64))],
    )

    assert not batches(model)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ([("x", FLOAT, [1, 2])], [("y", FLOAT, [1, 2])]),
        ([("x", FLOAT, [])], [("y", FLOAT, [])]),
        ([("x", FLOAT, ["N", 2])], [("y", FLOAT, ["M", 2])]),
    ],
)
def test_tensors_without_one_dynamic_first_dimension_do_not(
    tmp_path: Path, inputs: Any, outputs: Any
) -> None:
    assert not batches(save(tmp_path / "m.onnx", inputs, outputs, [("Neg", ["x"], ["y"])]))


def test_state_does_not(tmp_path: Path) -> None:
    model = save(
        tmp_path / "m.onnx",
        [("x", FLOAT, ["N", 2]), ("h", FLOAT, ["N", 2])],
        [("h_out", FLOAT, ["N", 2])],
        [("Add", ["x", "h"], ["h_out"])],
    )

    assert not batches(model, state="h")


def test_an_input_that_is_no_state_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r'STATE: expected names of inputs, got h beside "x"'):
        batches(rows_alone(tmp_path), state="h")


def test_who_knows_better_may_say_no(tmp_path: Path) -> None:
    assert not batches(rows_alone(tmp_path), batching="false")


def test_nobody_may_say_yes_where_the_tensors_do_not_allow_it(tmp_path: Path) -> None:
    model = save(
        tmp_path / "m.onnx",
        [("x", FLOAT, [2])],
        [("y", FLOAT, [2])],
        [("Neg", ["x"], ["y"])],
    )

    with pytest.raises(TrainingError, match=r"BATCHING: expected false, got true: the first dim"):
        batches(model, batching="true")
    with pytest.raises(TrainingError, match="BATCHING: expected true or false, got 'maybe'"):
        batches(model, batching="maybe")


def test_strings_share_a_run(tmp_path: Path) -> None:
    model = save(
        tmp_path / "m.onnx",
        [("x", STRING, ["N"])],
        [("y", STRING, ["N"])],
        [("Identity", ["x"], ["y"])],
    )

    assert batches(model)


def test_trained_models_share_a_run(store: Path) -> None:
    assert read_contract(store / "iris" / "1").batching is True
