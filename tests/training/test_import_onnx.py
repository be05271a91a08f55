"""Contracts for models that were not trained here."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from skl2onnx import to_onnx
from skl2onnx.common.data_types import StringTensorType
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from artifact.contract import Contract, read_contract
from artifact.errors import StoreError
from artifact.verify import differences
from tests.onnx_files import BOOL, FLOAT, INT64, STRING, save
from training.dataset import load
from training.errors import TrainingError
from training.import_onnx import make_contract


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """x float32[N,2] -> scores float32[N,3], and a copy of x."""
    return save(
        tmp_path / "linear.onnx",
        [("x", FLOAT, ["N", 2])],
        [("scores", FLOAT, ["N", 3]), ("copy", FLOAT, ["N", 2])],
        [("MatMul", ["x", "w"], ["scores"]), ("Identity", ["x"], ["copy"])],
        [("w", np.arange(6, dtype=np.float32).reshape(2, 3))],
    )


def needs(tmp_path: Path, columns: int) -> Path:
    """A model of float32[N,columns] that says its second dimension is dynamic."""
    return save(
        tmp_path / f"needs-{columns}.onnx",
        [("x", FLOAT, ["N", "width"])],
        [("y", FLOAT, ["N", 1])],
        [("MatMul", ["x", "w"], ["y"])],
        [("w", np.ones((columns, 1), dtype=np.float32))],
    )


def needs_image(tmp_path: Path) -> Path:
    """A model of images, float32[N,3,64,64]."""
    return save(
        tmp_path / "image.onnx",
        [("x", FLOAT, ["N", 3, 64, 64])],
        [("y", FLOAT, ["N", 3, 1, 1])],
        [("GlobalAveragePool", ["x"], ["y"])],
    )


def describe(onnx_file: Path, store: Path, **options: Any) -> Contract:
    """Make the contract of a file, check it as a server does, and return it."""
    path = Path(
        make_contract(
            onnx_file=onnx_file,
            store=store,
            **{"name": "own", "version": "1", "purpose": "a test", **options},
        )
    )
    contract = read_contract(path)
    assert differences(contract, path) == []
    return contract


def test_an_artifact_keeps_the_files_bytes(linear: Path, tmp_path: Path) -> None:
    """Who signed or scanned the model must find the same hash in the store."""
    contract = describe(linear, tmp_path / "store", alias="stable", owner="Ada")
    assert (tmp_path / "store/own/1/model.onnx").read_bytes() == linear.read_bytes()
    assert (tmp_path / "store/own/aliases/stable").read_text() == "1\n"
    assert contract.inputs[0].signature == "float32[N,2]"
    assert [output.name for output in contract.outputs] == ["scores", "copy"]
    assert (contract.model.ir_version, contract.model.opsets) == (8, {"": 17})
    assert contract.origin.command == (
        f"make contract ONNX={linear} NAME=own VERSION=1 PURPOSE='a test' OWNER=Ada"
    )


def test_generated_rows_are_the_same_every_time(linear: Path, tmp_path: Path) -> None:
    first, second = (describe(linear, tmp_path / store) for store in ("a", "b"))
    assert first == second
    assert first.golden.source == "generated, seed 0"
    assert first.golden_inputs()["x"].shape == (4, 2)
    assert first.golden_inputs()["x"].all()


@pytest.mark.parametrize("columns", [1, 8, 32, 256])
def test_a_dynamic_dimension_gets_the_first_size_that_runs(columns: int, tmp_path: Path) -> None:
    contract = describe(needs(tmp_path, columns), tmp_path / "store")
    assert contract.golden_inputs()["x"].shape == (4, columns)


def test_large_rows_give_one_golden_row(tmp_path: Path) -> None:
    """People read contracts, and servers run the golden rows when they start."""
    contract = describe(needs_image(tmp_path), tmp_path / "store")
    assert contract.golden_inputs()["x"].shape == (1, 3, 64, 64)


def test_a_model_of_single_rows_gives_one_golden_row(tmp_path: Path) -> None:
    model = save(
        tmp_path / "single.onnx",
        [("x", FLOAT, ["N", 2])],
        [("y", FLOAT, ["N", 2])],
        [("Reshape", ["x", "shape"], ["y"])],
        [("shape", np.array([1, 2], np.int64))],
    )
    assert describe(model, tmp_path / "store").golden_inputs()["x"].shape == (1, 2)


def test_the_error_names_sample_if_no_size_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TrainingError) as raised:
        describe(needs(tmp_path, 77), tmp_path / "store")
    message = str(raised.value)
    assert "SAMPLE=rows.npz" in message
    for tried in ("x[1,8]: ", "x[1,32]: ", "x[1,256]: ", "x[1,1]: "):
        assert tried in message
    assert message.count("MatMul dimension mismatch") == 4
    assert not (tmp_path / "store").exists()
    assert capfd.readouterr() == ("", "")


def test_dimensions_of_one_name_get_one_size_and_every_type_a_value(tmp_path: Path) -> None:
    """Text models take ids and a mask of the same length."""
    model = save(
        tmp_path / "text.onnx",
        [
            ("ids", INT64, ["batch", "length"]),
            ("mask", FLOAT, ["batch", "length"]),
            ("names", STRING, ["batch"]),
            ("flag", BOOL, []),
        ],
        [
            ("sum", FLOAT, ["batch", 32]),
            ("names_out", STRING, ["batch"]),
            ("flag_out", BOOL, []),
        ],
        [
            ("Cast", ["ids"], ["as_float"], {"to": FLOAT}),
            ("Add", ["as_float", "mask"], ["added"]),
            ("Mul", ["added", "w"], ["sum"]),
            ("Identity", ["names"], ["names_out"]),
            ("Not", ["flag"], ["flag_out"]),
        ],
        [("w", np.ones((1, 32), dtype=np.float32))],
    )
    golden = describe(model, tmp_path / "store").golden_inputs()
    assert golden["ids"].shape == golden["mask"].shape == (4, 32)
    assert {"", "some text"} <= set(golden["names"])
    assert golden["flag"].tolist() is True


@pytest.mark.parametrize("words", [1, 2, 7, 30_000])
def test_generated_tokens_are_in_the_vocabulary(words: int, tmp_path: Path) -> None:
    """Larger ids do not run. At least half of the vocabulary is used."""
    model = save(
        tmp_path / "embedding.onnx",
        [("ids", INT64, ["N", "S"])],
        [("y", FLOAT, ["N", "S"])],
        [("Gather", ["table", "ids"], ["y"])],
        [("table", np.arange(words, dtype=np.float32))],
    )
    ids = describe(model, tmp_path / "store").golden_inputs()["ids"]
    assert ids.shape == (4, 8)
    assert ids.min() == 0
    assert (words - 1) // 2 <= ids.max() < words


@pytest.mark.parametrize(("name", "kind"), [("attention_mask", INT64), ("keep", BOOL)])
@pytest.mark.parametrize("rows", ["N", 1])
def test_generated_masks_and_booleans_have_both_values(
    tmp_path: Path, name: str, kind: int, rows: Any
) -> None:
    """A mask of zeros hides the rest of the model."""
    model = save(
        tmp_path / "mask.onnx",
        [(name, kind, [rows, "S"])],
        [("y", FLOAT, [rows, "S"])],
        [("Cast", [name], ["y"], {"to": FLOAT})],
    )
    golden = describe(model, tmp_path / "store").golden_inputs()[name]
    assert set(golden.ravel().tolist()) == {0, 1}


def test_generated_integers_are_not_zero_where_zeros_do_not_run(tmp_path: Path) -> None:
    """A length, for example, may have to be positive."""
    model = save(
        tmp_path / "lengths.onnx",
        [("lengths", INT64, ["N"])],
        [("y", FLOAT, ["N"])],
        [("Sub", ["lengths", "four"], ["index"]), ("Gather", ["table", "index"], ["y"])],
        # Of three values: the indices -3 to 2 exist.
        [("four", np.array(4, np.int64)), ("table", np.arange(3, dtype=np.float32))],
    )
    lengths = describe(model, tmp_path / "store").golden_inputs()["lengths"]
    assert set(lengths.tolist()) == {1, 2, 3}


def test_generated_strings_are_categories_of_the_model(tmp_path: Path) -> None:
    """All unknown categories give the same output."""
    colours = np.array([["red"], ["green"]], object)
    fitted = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LinearRegression())
    fitted.fit(colours, [1, 2])
    types = [("colour", StringTensorType([None, 1]))]
    model = to_onnx(fitted, initial_types=types, target_opset={"": 17, "ai.onnx.ml": 3})
    (tmp_path / "colours.onnx").write_bytes(model.SerializeToString())
    golden = describe(tmp_path / "colours.onnx", tmp_path / "store").golden
    assert {"red", "green"} & {text for (text,) in golden.inputs["colour"]}
    assert golden.source == "generated, seed 0"


def test_generated_strings_are_numbers_where_the_model_reads_numbers(tmp_path: Path) -> None:
    model = save(
        tmp_path / "numbers.onnx",
        [("text", STRING, ["N"])],
        [("y", FLOAT, ["N"])],
        [("Cast", ["text"], ["y"], {"to": FLOAT})],
    )
    contract = describe(model, tmp_path / "store")
    assert set(contract.golden.inputs["text"]) == {"1", "2.5"}


def test_the_leading_dimension_has_one_size_wherever_its_name_stands(tmp_path: Path) -> None:
    """Given 32 in one place and 1 in another, this model would run with no size at all."""
    model = save(
        tmp_path / "pairs.onnx",
        [("x", FLOAT, ["N", "width"]), ("weights", FLOAT, [2, "N"])],
        [("y", FLOAT, [2, 1])],
        [("MatMul", ["x", "w"], ["xw"]), ("MatMul", ["weights", "xw"], ["y"])],
        [("w", np.ones((32, 1), dtype=np.float32))],
    )
    golden = describe(model, tmp_path / "store").golden_inputs()
    assert golden["x"].shape == (4, 32)
    assert golden["weights"].shape == (2, 4)


def test_a_sample_becomes_the_golden_rows(linear: Path, tmp_path: Path) -> None:
    rows = np.array([[1, 2], [3, 4], [0.5, -1]], dtype=np.float32)
    np.savez(tmp_path / "rows.npz", x=rows)
    contract = describe(linear, tmp_path / "store", sample=tmp_path / "rows.npz")
    assert contract.golden.source == "rows.npz"
    assert contract.golden_inputs()["x"].tolist() == rows.tolist()
    assert contract.golden_outputs()["scores"][0].tolist() == [6, 9, 12]
    assert "SAMPLE=" in contract.origin.command


def test_a_sample_of_text_is_taken(tmp_path: Path) -> None:
    model = save(
        tmp_path / "text.onnx",
        [("names", STRING, ["N"])],
        [("same", STRING, ["N"])],
        [("Identity", ["names"], ["same"])],
    )
    np.savez(tmp_path / "rows.npz", names=np.array(["a", "bc"]))
    contract = describe(model, tmp_path / "store", sample=tmp_path / "rows.npz")
    assert contract.golden.outputs == {"same": ["a", "bc"]}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, r'"x" expected float32\[N,2\], got nothing'),
        ({"x": np.ones((1, 2))}, r'"x" expected float32\[N,2\], got float64\[1,2\]'),
        ({"x": np.ones((1, 3), np.float32)}, r"got float32\[1,3\]"),
        ({"x": np.ones(2, np.float32)}, r"got float32\[2\]"),
        ({"x": np.ones((0, 2), np.float32)}, r"got float32\[0,2\]"),
        ({"z": np.ones(1)}, r'"z" expected no such input, got one; "x" expected'),
    ],
)
def test_a_sample_that_does_not_fit_is_explained(
    linear: Path, tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "rows.npz", **arrays)
    with pytest.raises(TrainingError, match=message):
        describe(linear, tmp_path / "store", sample=tmp_path / "rows.npz")
    assert not (tmp_path / "store").exists()


def test_a_sample_that_does_not_run_is_explained(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.ones((1, 3), np.float32))
    with pytest.raises(TrainingError, match=r"rows\.npz: the model does not run with it: .*MatMul"):
        describe(needs(tmp_path, 77), tmp_path / "store", sample=tmp_path / "rows.npz")


def test_a_sample_that_is_no_npz_is_refused(linear: Path, tmp_path: Path) -> None:
    """Above all pickled objects, which can run any code when they are read."""
    np.save(tmp_path / "one.npy", np.ones(2))
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object))
    (tmp_path / "text.npz").write_text("1,2")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("one.npy", "pickled.npz", "text.npz", "empty.npz", "none.npz"):
        with pytest.raises(TrainingError, match=rf"{name}: expected "):
            describe(linear, tmp_path / "store", sample=tmp_path / name)


def test_labels_go_to_the_output_with_as_many_columns(linear: Path, tmp_path: Path) -> None:
    contract = describe(linear, tmp_path / "store", labels="low, mid,high")
    assert contract.outputs[0].labels == ("low", "mid", "high")
    assert contract.outputs[1].labels == ()
    assert contract.prediction.name == "scores"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("a,b,c,d", r"last dimension is 4, .*got none among .*scores.*float32\[N,3\]"),
        ("a,,c", 'expected different names, a,b,c, got "a,,c"'),
        ("a,b,a", "expected different names"),
    ],
)
def test_labels_that_fit_nowhere_are_refused(
    linear: Path, tmp_path: Path, labels: str, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        describe(linear, tmp_path / "store", labels=labels)


def test_labels_that_fit_two_outputs_are_refused(tmp_path: Path) -> None:
    """To guess would be to swap what a client reads."""
    model = save(
        tmp_path / "two.onnx",
        [("x", FLOAT, ["N", 2])],
        [("a", FLOAT, ["N", 2]), ("b", FLOAT, ["N", 2])],
        [("Identity", ["x"], ["a"]), ("Neg", ["x"], ["b"])],
    )
    with pytest.raises(TrainingError, match=r'expected one output .*got 2 among "a" .*"b"'):
        describe(model, tmp_path / "store", labels="x,y")


def test_zipmap_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """It is skl2onnx's default, and a sequence of maps is no tensor."""
    iris = load("iris")
    fitted = LogisticRegression(max_iter=1000).fit(iris.rows, iris.targets)
    model = to_onnx(fitted, iris.rows[:1].astype(np.float32), target_opset=17)
    path = tmp_path / "zipmap.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(TrainingError, match=r'output_probability" is seq\(map.*"zipmap": False'):
        describe(path, tmp_path / "store")


def with_external_data(linear: Path, directory: Path) -> Path:
    directory.mkdir()
    onnx.save_model(
        onnx.load(linear),
        directory / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return directory / "model.onnx"


def test_external_data_is_brought_in(linear: Path, tmp_path: Path) -> None:
    """An artifact has one model file; weights left beside it would not be in its hash."""
    model = with_external_data(linear, tmp_path / "external")
    contract = describe(model, tmp_path / "store")
    stored = onnx.load(tmp_path / "store/own/1/model.onnx", load_external_data=False)
    assert stored.graph.initializer[0].data_location == TensorProto.DEFAULT
    assert contract.golden.outputs == describe(linear, tmp_path / "other").golden.outputs


def test_external_data_that_is_missing_or_too_large_is_refused(
    linear: Path, tmp_path: Path
) -> None:
    model = with_external_data(linear, tmp_path / "external")
    weights = model.with_name("weights.bin")
    with weights.open("r+b") as file:
        file.truncate(2**31)  # sparse: it takes no room
    with pytest.raises(TrainingError, match=r"at most 2147483647 bytes .*, got 21474"):
        describe(model, tmp_path / "store")
    weights.unlink()
    with pytest.raises(TrainingError, match=r"model\.onnx: its external data cannot be read"):
        describe(model, tmp_path / "store")


def test_a_file_without_a_model_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(TrainingError, match=r"text\.onnx: "):
        describe(tmp_path / "text.onnx", tmp_path / "store")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"empty\.onnx: onnxruntime .* does not load it"):
        describe(tmp_path / "empty.onnx", tmp_path / "store")
    with pytest.raises(TrainingError, match=r"none\.onnx: expected an ONNX file: No such file"):
        describe(tmp_path / "none.onnx", tmp_path / "store")


def test_a_model_that_answers_differently_each_time_is_refused(tmp_path: Path) -> None:
    """Its golden rows could never come out right in a server."""
    model = save(
        tmp_path / "random.onnx",
        [("x", FLOAT, ["N", 2])],
        [("y", FLOAT, ["N", 2])],
        [("RandomNormalLike", ["x"], ["y"])],
    )
    with pytest.raises(TrainingError, match=r'expected the same answer .* in "y"'):
        describe(model, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_missing_options_are_named_together(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^ONNX and NAME and PURPOSE: expected a value"):
        make_contract(onnx_file=None, name="", version="1", store=tmp_path, purpose=" ")


def test_an_existing_version_is_refused(linear: Path, tmp_path: Path) -> None:
    describe(linear, tmp_path / "store")
    with pytest.raises(StoreError, match="this version exists"):
        describe(linear, tmp_path / "store")
