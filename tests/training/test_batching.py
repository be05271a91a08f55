"""Whether requests may share a run of a model: what the tensors allow, and what a run shows."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import quantize_dynamic
from rich.console import Console

from artifact.contract import Contract, read_contract
from tests.onnx_files import BOOL, FLOAT, INT64, STRING, save
from tests.own_models import save_text_encoder
from training.errors import TrainingError
from training.import_onnx import make_contract

ROWS = [("x", FLOAT, ["N", 2])]
SAME_SHAPE = [("y", FLOAT, ["N", 2])]
DEPENDS_ON_ROWS = "a row's answer depends on the other rows in the run"
DEPENDS_ON_NOTHING = 'output "y" does not depend on the input'
IS_NAN = 'output "y" is NaN'
FIRST, LAST, END = (np.array([index], np.int64) for index in (0, -1, np.iinfo(np.int64).max))


def describe(onnx_file: Path, **options: Any) -> Contract:
    """Publish a file and return its contract."""
    store = onnx_file.parent / "store"
    made = make_contract(
        onnx_file=onnx_file, name="own", version="1", store=store, purpose="a test", **options
    )
    return read_contract(Path(made))


def batches(onnx_file: Path, **options: Any) -> bool:
    """What the contract of a file says."""
    contract = describe(onnx_file, **options)
    assert contract.batching is not None
    return contract.batches


def rows_alone(path: Path) -> Path:
    return save(path / "m.onnx", ROWS, [("y", FLOAT, ["N", 2])], [("Neg", ["x"], ["y"])])


def test_rows_that_are_answered_by_themselves_share_a_run(tmp_path: Path) -> None:
    assert batches(rows_alone(tmp_path))


# Nodes from x to y, and constants, of models whose rows depend on each other.
DEPENDENT = {
    "sum of the rows so far": (
        [("CumSum", ["x", "axis"], ["y"])],
        [("axis", np.array(0, np.int64))],
    ),
    "batch normalisation": (
        [("ReduceMean", ["x"], ["mean"], {"axes": [0]}), ("Sub", ["x", "mean"], ["y"])],
        [],
    ),
    "softmax over the rows": ([("Softmax", ["x"], ["y"], {"axis": 0})], []),
    "sorting": (
        [("Shape", ["x"], ["rows"], {"end": 1}),
         ("TopK", ["x", "rows"], ["y", "indices"], {"axis": 0})],
        [],
    ),
    "first row is special": (
        [("Slice", ["x", "first", "one"], ["head"]), ("Slice", ["x", "one", "end"], ["tail"]),
         ("Neg", ["head"], ["negative"]), ("Concat", ["negative", "tail"], ["y"], {"axis": 0})],
        [("first", FIRST), ("one", np.array([1], np.int64)), ("end", END)],
    ),
    "last row is special": (
        [("Slice", ["x", "first", "last"], ["head"]), ("Slice", ["x", "last", "end"], ["tail"]),
         ("Neg", ["tail"], ["negative"]), ("Concat", ["head", "negative"], ["y"], {"axis": 0})],
        [("first", FIRST), ("last", LAST), ("end", END)],
    ),
    "difference from the first row": (
        [("Gather", ["x", "first"], ["head"]), ("Sub", ["x", "head"], ["y"])],
        [("first", FIRST)],
    ),
    "number of rows": (
        [("Shape", ["x"], ["rows"], {"end": 1}), ("Cast", ["rows"], ["count"], {"to": FLOAT}),
         ("Div", ["x", "count"], ["y"])],
        [],
    ),
    "only a far larger row matters": (
        [("ReduceMax", ["x"], ["largest"]), ("Div", ["largest", "twenty"], ["least"]),
         ("Max", ["x", "least"], ["y"])],
        [("twenty", np.array(20, np.float32))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEPENDENT)
@pytest.mark.parametrize("rows", [None, 1, 3])
def test_rows_that_depend_on_each_other_do_not_share_a_run(
    tmp_path: Path, name: str, rows: int | None
) -> None:
    """Neither with generated rows nor with a sample, even of a single row."""
    nodes, constants = DEPENDENT[name]
    model = save(tmp_path / "m.onnx", ROWS, SAME_SHAPE, nodes, constants)
    sample = None
    if rows:
        sample = tmp_path / "rows.npz"
        np.savez(sample, x=np.arange(1, 2 * rows + 1, dtype=np.float32).reshape(rows, 2))

    contract = describe(model, sample=sample)

    assert contract.batching is False
    source = "rows.npz" if rows else "generated, seed 0"
    assert contract.golden.source.startswith(f"{source}; batching is off: {DEPENDS_ON_ROWS}")


def test_equal_rows_that_become_one_do_not_share_a_run(tmp_path: Path) -> None:
    nodes = [("Unique", ["x"], ["y"], {"axis": 0, "sorted": 0})]

    contract = describe(save(tmp_path / "m.onnx", ROWS, SAME_SHAPE, nodes))

    assert contract.batching is False
    assert 'batching is off: output "y" has ' in contract.golden.source


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (("Sqrt", ["negative"], ["y"]), IS_NAN),
        (("Mul", ["x", "zero"], ["y"]), DEPENDS_ON_NOTHING),
        (("Max", ["negative", "zero"], ["y"]), DEPENDS_ON_NOTHING),
    ],
)
@pytest.mark.parametrize("with_sample", [False, True])
def test_an_output_that_proves_nothing_switches_batching_off(
    tmp_path: Path, node: Any, reason: str, *, with_sample: bool
) -> None:
    """It is the same whatever the other rows are, and the golden rows verify nothing."""
    nodes = [("Abs", ["x"], ["positive"]), ("Sub", ["minus_one", "positive"], ["negative"]), node]
    constants = [("zero", np.array(0, np.float32)), ("minus_one", np.array(-1, np.float32))]
    model = save(tmp_path / "m.onnx", ROWS, SAME_SHAPE, nodes, constants)
    sample = tmp_path / "rows.npz" if with_sample else None
    if sample:
        np.savez(sample, x=np.array([[1, 2], [3, 4]], np.float32))
    shown = io.StringIO()

    contract = describe(model, sample=sample, console=Console(file=shown))

    assert contract.batching is False
    assert contract.golden.source == (
        f"{'rows.npz' if with_sample else 'generated, seed 0'}; "
        f"batching is off: {reason}; the golden rows verify nothing: {reason}"
    )
    assert (
        f"warning: the golden rows verify nothing: {reason}. "
        "Provide rows of real data: SAMPLE=rows.npz (input name -> array)\n"
    ) in shown.getvalue()
    assert (
        f"See whether requests may share a run: no: {reason} (BATCHING=true overrides) ("
    ) in shown.getvalue()


def test_one_output_that_proves_nothing_switches_batching_off(tmp_path: Path) -> None:
    """The golden rows verify the other output, so there is no warning."""
    model = save(
        tmp_path / "m.onnx",
        ROWS,
        [("negative", FLOAT, ["N", 2]), *SAME_SHAPE],
        [("Neg", ["x"], ["negative"]), ("Mul", ["x", "zero"], ["y"])],
        [("zero", np.array(0, np.float32))],
    )
    shown = io.StringIO()

    contract = describe(model, console=Console(file=shown))

    assert contract.batching is False
    assert contract.golden.source == f"generated, seed 0; batching is off: {DEPENDS_ON_NOTHING}"
    assert "warning" not in shown.getvalue()


def test_batching_true_overrides_the_trial(tmp_path: Path) -> None:
    nodes, constants = DEPENDENT["batch normalisation"]
    model = save(tmp_path / "m.onnx", ROWS, SAME_SHAPE, nodes, constants)

    contract = describe(model, batching="true")

    assert contract.batching is True
    assert contract.golden.source == "generated, seed 0"


def test_a_reason_that_the_tensors_show_is_not_repeated_in_the_contract(tmp_path: Path) -> None:
    model = save(
        tmp_path / "m.onnx", [("x", FLOAT, [2])], [("y", FLOAT, [2])], [("Neg", ["x"], ["y"])]
    )

    contract = describe(model)

    assert contract.batching is False
    assert contract.golden.source == "generated, seed 0"


def test_golden_rows_that_verify_nothing_are_noted_for_models_that_do_not_batch(
    tmp_path: Path,
) -> None:
    model = save(
        tmp_path / "m.onnx",
        [("x", FLOAT, [3, 2])],
        [("y", FLOAT, [3, 2])],
        [("Sub", ["x", "x"], ["y"])],
    )

    assert describe(model).golden.source == (
        f"generated, seed 0; the golden rows verify nothing: {DEPENDS_ON_NOTHING}"
    )


def test_a_model_without_inputs_is_verified(tmp_path: Path) -> None:
    """Its only output is the right one."""
    model = save(
        tmp_path / "m.onnx",
        [],
        [("y", FLOAT, [2])],
        [("Identity", ["constant"], ["y"])],
        [("constant", np.ones(2, np.float32))],
    )

    assert describe(model).golden.source == "generated, seed 0"


def test_a_mask_does_not_hide_that_rows_depend_on_each_other(tmp_path: Path) -> None:
    """Where the mask is 0, the output is 0, whatever the other rows are."""
    model = save(
        tmp_path / "m.onnx",
        [("x", FLOAT, ["N", 2]), ("mask", INT64, ["N", 2])],
        SAME_SHAPE,
        [
            ("ReduceMax", ["x"], ["largest"]),
            ("Div", ["x", "largest"], ["scaled"]),
            ("Cast", ["mask"], ["weights"], {"to": FLOAT}),
            ("Mul", ["scaled", "weights"], ["y"]),
        ],
    )

    assert DEPENDS_ON_ROWS in describe(model).golden.source


@pytest.mark.parametrize("kind", [INT64, BOOL])
def test_rows_with_a_mask_share_a_run(tmp_path: Path, kind: int) -> None:
    model = save(
        tmp_path / "m.onnx",
        [("x", FLOAT, ["N", 2]), ("mask", kind, ["N", 2])],
        SAME_SHAPE,
        [("Cast", ["mask"], ["weights"], {"to": FLOAT}), ("Mul", ["x", "weights"], ["y"])],
    )

    assert batches(model)


def test_tokens_of_a_small_vocabulary_share_a_run(tmp_path: Path) -> None:
    model = save(
        tmp_path / "m.onnx",
        [("ids", INT64, ["N", "S"])],
        [("y", FLOAT, ["N", "S"])],
        [("Gather", ["table", "ids"], ["y"])],
        [("table", np.arange(7, dtype=np.float32))],
    )

    assert batches(model)


def test_images_share_a_run(tmp_path: Path) -> None:
    model = save(
        tmp_path / "m.onnx",
        [("x", FLOAT, ["N", 3, "H", "W"])],
        [("y", FLOAT, ["N", 4, 1, 1])],
        [
            ("Conv", ["x", "kernels"], ["features"]),
            ("Relu", ["features"], ["active"]),
            ("GlobalAveragePool", ["active"], ["y"]),
        ],
        [("kernels", np.random.default_rng(0).standard_normal((4, 3, 3, 3), np.float32))],
    )

    assert batches(model)


def test_a_dynamically_quantised_model_that_returns_labels_does_not_share_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels seldom show that their scores changed, so the nodes of the graph decide.

    Whether a trial finds a changed label depends on the processor: here it finds none.
    """
    monkeypatch.setattr("training.batching._why_rows_differ", lambda *_: None)
    model = onnx.load(save_text_encoder(tmp_path))
    del model.graph.output[:]
    model.graph.node.append(onnx.helper.make_node("ArgMax", ["scores"], ["y"], axis=1, keepdims=0))
    model.graph.output.append(onnx.helper.make_tensor_value_info("y", INT64, ["N"]))
    onnx.save(model, tmp_path / "m.onnx")

    contract = describe(tmp_path / "m.onnx")

    assert contract.batching is False
    assert "DynamicQuantizeLinear computes one scale for all rows" in contract.golden.source


def test_a_dynamically_quantised_model_of_numbers_does_not_share_runs(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((8, 3), np.float32)
    save(
        tmp_path / "float.onnx",
        [("x", FLOAT, ["N", 8])],
        [("y", FLOAT, ["N", 3])],
        [("MatMul", ["x", "w"], ["y"])],
        [("w", weights)],
    )
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "m.onnx")

    assert DEPENDS_ON_ROWS in describe(tmp_path / "m.onnx").golden.source


@pytest.mark.parametrize("name", ["batch normalisation", "sorting"])
def test_the_same_model_gets_the_same_contract(tmp_path: Path, name: str) -> None:
    nodes, constants = DEPENDENT[name]
    files = []
    for copy in ("a", "b"):
        (tmp_path / copy).mkdir()
        files.append(save(tmp_path / copy / "m.onnx", ROWS, SAME_SHAPE, nodes, constants))

    first, second = map(describe, files)

    assert first.golden == second.golden


def test_rows_that_do_not_run_together_do_not_share_a_run(tmp_path: Path) -> None:
    """The shape [1] is computed: onnxruntime would promise it, were it a constant."""
    model = save(
        tmp_path / "m.onnx",
        [("x", FLOAT, ["N"])],
        [("y", FLOAT, ["N"])],
        [
            ("Shape", ["x"], ["rows"]),
            ("Div", ["rows", "rows"], ["one"]),
            ("Reshape", ["x", "one"], ["y"]),
        ],
    )

    assert describe(model).golden.source == (
        "generated, seed 0; batching is off: rows do not run together"
    )


def test_a_sample_with_inputs_of_different_lengths_does_not_share_a_run(tmp_path: Path) -> None:
    """Without names, the dimensions may differ."""
    model = save(
        tmp_path / "m.onnx",
        [("a", FLOAT, [None]), ("b", FLOAT, [None])],
        [("x", FLOAT, [None]), ("y", FLOAT, [None])],
        [("Neg", ["a"], ["x"]), ("Neg", ["b"], ["y"])],
    )
    np.savez(tmp_path / "rows.npz", a=np.ones(2, np.float32), b=np.ones(3, np.float32))

    assert describe(model, sample=tmp_path / "rows.npz").golden.source == (
        "rows.npz; batching is off: the inputs have different numbers of golden rows"
    )


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
