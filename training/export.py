"""Export a fitted pipeline to ONNX, and check that ONNX Runtime agrees with scikit-learn.

Deterministic: the model contains no time and no random name.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.pipeline import Pipeline

from artifact.contract import Agreement
from artifact.verify import agree, session_of
from training.dataset import Dataset, Float64Array
from training.errors import TrainingError
from training.pipeline import expected

Float32Array = NDArray[np.float32]
# Opsets that the locked onnxruntime loads. onnx's default is newer: servers would reject it.
TARGET_OPSET = {"": 21, "ai.onnx.ml": 3}
INPUT = "input"
RTOL = 1e-4
ATOL = 1e-5


def to_onnx(dataset: Dataset, pipeline: Pipeline, name: str) -> bytes:
    """Return a pipeline as an ONNX model. name: of the graph.

    Input: "input", float32[N, features]. Output: "probabilities", float32[N, labels], or for a
    regression "prediction", float32[N, 1].
    """
    classification = dataset.task == "classification"
    model = convert_sklearn(
        pipeline,
        # Without a name skl2onnx generates a random one, which changes the bytes.
        name=name,
        initial_types=[(INPUT, FloatTensorType([None, len(dataset.features)]))],
        target_opset=TARGET_OPSET,
        options={"zipmap": False} if classification else None,
    )
    if classification:
        # Drop the output of label indices: the contract has the names of the labels.
        _expose(model, "probabilities", "probabilities", len(dataset.labels))
    else:
        _expose(model, model.graph.output[0].name, "prediction", 1)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    _import_each_domain_once(model)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _expose(model: onnx.ModelProto, output: str, name: str, columns: int) -> None:
    """Rename a value of the graph and make it the only output, float32[N, columns]."""
    for node in model.graph.node:
        node.output[:] = [name if value == output else value for value in node.output]
    del model.graph.output[:]
    float32 = onnx.TensorProto.FLOAT
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, float32, ["N", columns]))


def _import_each_domain_once(model: onnx.ModelProto) -> None:
    """Import the default domain and the domains of the nodes, once each.

    skl2onnx imports the default domain twice. Optimisers may add nodes of the default domain.
    """
    used = {"", *(node.domain for node in model.graph.node)}
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    del model.opset_import[:]
    for domain in sorted(used):
        model.opset_import.append(onnx.helper.make_opsetid(domain, opsets[domain]))


def check_agreement(
    dataset: Dataset, pipeline: Pipeline, model: bytes, held_out_rows: Float64Array
) -> Agreement:
    """Compare ONNX Runtime with scikit-learn on every held-out row; return the agreement.

    held_out_rows: (n, features) float64; both get the rows rounded to float32. Raises
    TrainingError if a value differs by more than ATOL + RTOL * |scikit-learn's value|.
    """
    rows = held_out_rows.astype(np.float32)
    reference = expected(dataset, pipeline, rows.astype(np.float64))
    (actual,) = session_of(model).run(None, {INPUT: rows})
    distances = np.abs(actual - reference)
    largest = float(distances.max())
    differs = ~agree(actual, reference, rtol=RTOL, atol=ATOL)
    if differs.any():
        different_rows = int(differs.any(axis=1).sum())
        row, column = np.unravel_index(np.argmax(np.where(differs, distances, -1)), actual.shape)
        raise TrainingError(
            f"{dataset.name}: ONNX Runtime and scikit-learn disagree on {different_rows} "
            f"of {len(rows)} held-out rows; at most in row {row}, column {column}: expected "
            f"{reference[row, column]:.9g}, got {actual[row, column]:.9g}, which is more than "
            f"rtol {RTOL:g} and atol {ATOL:g} allow. Nothing is published. Features with large "
            "values that differ little lose their digits in float32: subtract an offset first."
        )
    return Agreement(rows=len(rows), largest_difference=largest, rtol=RTOL, atol=ATOL)
