"""ONNX files made up for tests, node by node."""

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, STRING, BOOL = (
    TensorProto.FLOAT,
    TensorProto.INT64,
    TensorProto.STRING,
    TensorProto.BOOL,
)


def save(path: Path, inputs: Any, outputs: Any, nodes: Any, constants: Any = ()) -> Path:
    """Write an ONNX file.

    inputs, outputs: (name, type, shape). nodes: (op type, inputs, outputs) and, where a node has
    some, a dict of attributes. constants: (name, array).
    """
    graph = helper.make_graph(
        [
            helper.make_node(op_type, before, after, **dict(*attributes))
            for op_type, before, after, *attributes in nodes
        ],
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def save_table(path: Path) -> Path:
    """Write a model that looks up an index in a table of five values; other indices fail."""
    return save(
        path,
        [("index", INT64, ["N"])],
        [("value", FLOAT, ["N"])],
        [("Gather", ["table", "index"], ["value"])],
        [("table", np.arange(5, dtype=np.float32))],
    )
