"""ONNX models of fitted pipelines."""

import onnx
import pytest
from sklearn.pipeline import Pipeline

from artifact.verify import session_of, tensors_of
from training import pipeline
from training.dataset import Dataset, load
from training.errors import TrainingError
from training.export import check_agreement, to_onnx


def fitted(name: str) -> tuple[Dataset, pipeline.Split, Pipeline]:
    dataset = load(name)
    data = pipeline.split(dataset)
    return dataset, data, pipeline.fit(dataset, data)


@pytest.mark.parametrize(("name", "into", "out"), [
    ("iris", "float32[N,4]", ("probabilities", "float32[N,3]")),
    ("digits", "float32[N,64]", ("probabilities", "float32[N,10]")),
    ("diabetes", "float32[N,10]", ("prediction", "float32[N,1]")),
])  # fmt: skip
def test_a_model_has_one_input_and_one_output(name: str, into: str, out: tuple[str, str]) -> None:
    dataset, _, model = fitted(name)
    session = session_of(to_onnx(dataset, model, name))
    (input_,), (output,) = tensors_of(session)
    assert (input_.name, input_.signature) == ("input", into)
    assert (output.name, output.signature) == out


def test_the_graph_has_the_models_name_and_each_domain_once() -> None:
    """A graph without a name gets a random one, and a version other bytes every time."""
    dataset, _, fit = fitted("iris")
    model = onnx.load_model_from_string(to_onnx(dataset, fit, "flowers"))
    assert model.graph.name == "flowers"
    domains = [opset.domain for opset in model.opset_import]
    assert domains == ["", "ai.onnx.ml"]


def test_preprocessing_travels_in_the_graph() -> None:
    dataset, _, fit = fitted("iris")
    model = onnx.load_model_from_string(to_onnx(dataset, fit, "iris"))
    assert "Scaler" in [node.op_type for node in model.graph.node]


def test_agreement_is_measured_on_every_held_out_row() -> None:
    dataset, data, fit = fitted("digits")
    agreement = check_agreement(dataset, fit, to_onnx(dataset, fit, "d"), data.held_out_rows)
    assert agreement.rows == len(data.held_out_rows) == 450
    assert 0 < agreement.largest_difference < 1e-5


def test_one_row_that_differs_is_a_disagreement() -> None:
    dataset, data, fit = fitted("iris")
    model = to_onnx(dataset, fit, "iris")
    fit["logisticregression"].intercept_[1] += 0.01
    with pytest.raises(TrainingError, match=r"disagree on \d+ of 38 held-out rows.*expected .*got"):
        check_agreement(dataset, fit, model, data.held_out_rows)
