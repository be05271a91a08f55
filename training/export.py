"""A fitted pipeline as the bytes of an ONNX model, and proof that they agree.

Between pipeline.py and artifact.py. The same pipeline gives the same bytes: nothing in
them is a time or a random name.
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
# What the locked onnxruntime loads: onnx's own default is newer, and such a model would
# pass every check here but the servers'.
TARGET_OPSET = {"": 21, "ai.onnx.ml": 3}
INPUT = "input"
RTOL = 1e-4
ATOL = 1e-5


def to_onnx(dataset: Dataset, pipeline: Pipeline, name: str) -> bytes:
    """Return a pipeline as an ONNX model; `name` names its graph.

    Its input is "input", float32[N, features]. Its one output is "probabilities",
    float32[N, labels], or for a regression "prediction", float32[N, 1].
    """
    classification = dataset.task == "classification"
    model = convert_sklearn(
        pipeline,
        # Without a name the graph gets a random one, and the bytes change every time.
        name=name,
        initial_types=[(INPUT, FloatTensorType([None, len(dataset.features)]))],
        target_opset=TARGET_OPSET,
        options={"zipmap": False} if classification else None,
    )
    if classification:
        # The label output goes: labels are in the contract, where they have names.
        _expose(model, "probabilities", "probabilities", len(dataset.labels))
    else:
        _expose(model, model.graph.output[0].name, "prediction", 1)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    _import_each_domain_once(model)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _expose(model: onnx.ModelProto, output: str, name: str, columns: int) -> None:
    """Make one of the graph's values its only output, float32[N, columns], named `name`."""
    for node in model.graph.node:
        node.output[:] = [name if found == output else found for found in node.output]
    del model.graph.output[:]
    float32 = onnx.TensorProto.FLOAT
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, float32, ["N", columns]))


def _import_each_domain_once(model: onnx.ModelProto) -> None:
    """Keep the default domain, which optimizers add nodes of, and those that nodes are in.

    skl2onnx imports the default domain twice.
    """
    used = {"", *(node.domain for node in model.graph.node)}
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    del model.opset_import[:]
    for domain in sorted(used):
        model.opset_import.append(onnx.helper.make_opsetid(domain, opsets[domain]))


def check_agreement(
    dataset: Dataset, pipeline: Pipeline, model: bytes, held_out_rows: Float64Array
) -> Agreement:
    """Return how closely ONNX Runtime reproduces scikit-learn on every held-out row.

    held_out_rows: (n, features); both get them rounded to float32. Raises TrainingError
    when a value differs by more than ATOL + RTOL * |scikit-learn's value|.
    """
    rows = held_out_rows.astype(np.float32)
    want = expected(dataset, pipeline, rows.astype(np.float64))
    (got,) = session_of(model).run(None, {INPUT: rows})
    distances = np.abs(got - want)
    largest = float(distances.max())
    wrong = ~agree(got, want, rtol=RTOL, atol=ATOL)
    if wrong.any():
        rows_wrong = int(wrong.any(axis=1).sum())
        row, column = np.unravel_index(np.argmax(np.where(wrong, distances, -1)), got.shape)
        raise TrainingError(
            f"{dataset.name}: ONNX Runtime and scikit-learn disagree on {rows_wrong} "
            f"of {len(rows)} held-out rows; at most in row {row}, column {column}: expected "
            f"{want[row, column]:.9g}, got {got[row, column]:.9g}, which is more than "
            f"rtol {RTOL:g} and atol {ATOL:g} allow. Nothing is published. Features with large "
            "values that differ little lose their digits in float32: subtract an offset first."
        )
    return Agreement(rows=len(rows), largest_difference=largest, rtol=RTOL, atol=ATOL)
