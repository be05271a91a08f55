"""Private interfaces of packages that the server uses, each with the test that fails if it changes.

An upgrade may remove or change any of them without notice.
"""

import importlib
from pathlib import Path

import numpy as np
import pytest

from artifact.contract import read_contract
from serving.errors import RequestError
from serving.inference.model import Model
from tests.onnx_files import FLOAT, INT64, save
from training.import_onnx import make_contract


@pytest.mark.parametrize("name", ["Fail", "InvalidArgument", "RuntimeException"])
def test_onnxruntime_capi_onnxruntime_pybind11_state_has_the_run_errors(name: str) -> None:
    """serving/inference/model.py converts them to status 400."""
    module = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")

    assert issubclass(getattr(module, name), Exception)


def test_onnxruntime_raises_its_private_errors_for_values_that_a_model_cannot_handle(
    tmp_path: Path,
) -> None:
    """An index outside of the table: a mistake of the client, so not status 500."""
    file = save(
        tmp_path / "table.onnx",
        [("index", INT64, ["N"])],
        [("value", FLOAT, ["N"])],
        [("Gather", ["table", "index"], ["value"])],
        [("table", np.arange(5, dtype=np.float32))],
    )
    artifact = Path(
        make_contract(
            onnx_file=file, name="table", version="1", store=tmp_path / "store", purpose="a test"
        )
    )
    model = Model.open(artifact, read_contract(artifact), max_rows=1)

    with pytest.raises(RequestError) as rejected:
        model.run({"index": np.array([99], np.int64)}, model.output_names)

    assert rejected.value.status == 400
