"""Models made up for what the data sets do not have: several inputs, state, strings, all dtypes."""

from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from artifact.contract import Dtype
from tests.onnx_files import FLOAT, INT64, STRING, save
from training.import_onnx import make_contract

DTYPES: tuple[Dtype, ...] = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "string",
)  # fmt: skip


def _onnx_type(dtype: Dtype) -> int:
    return STRING if dtype == "string" else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


VOCABULARY = 1000


def save_text_encoder(path: Path) -> Path:
    """Write a dynamically quantised int8 text encoder: tokens and their mask to four scores.

    The mask decides which tokens count, and a text without any token has the scores 0.
    """
    random = np.random.default_rng(0)
    width = 32
    weights = {
        "embeddings": (VOCABULARY, width),
        "hidden_weights": (width, width),
        "score_weights": (width, 4),
    }
    save(
        path / "encoder-float.onnx",
        [("input_ids", INT64, ["N", "S"]), ("attention_mask", INT64, ["N", "S"])],
        [("scores", FLOAT, ["N", 4])],
        [
            ("Gather", ["embeddings", "input_ids"], ["embedded"]),
            ("MatMul", ["embedded", "hidden_weights"], ["projected"]),
            ("Tanh", ["projected"], ["hidden"]),
            ("Cast", ["attention_mask"], ["mask"], {"to": FLOAT}),
            ("Unsqueeze", ["mask", "last"], ["mask_of_hidden"]),
            ("Mul", ["hidden", "mask_of_hidden"], ["masked"]),
            ("ReduceSum", ["masked", "tokens"], ["sum"], {"keepdims": 0}),
            ("ReduceSum", ["mask", "tokens"], ["count"]),
            ("Max", ["count", "one"], ["divisor"]),
            ("Div", ["sum", "divisor"], ["pooled"]),
            ("MatMul", ["pooled", "score_weights"], ["scores"]),
        ],
        [
            *((name, random.standard_normal(shape, np.float32)) for name, shape in weights.items()),
            ("last", np.array([2], np.int64)),
            ("tokens", np.array([1], np.int64)),
            ("one", np.array(1, np.float32)),
        ],
    )
    quantize_dynamic(
        path / "encoder-float.onnx",
        path / "encoder.onnx",
        op_types_to_quantize=["MatMul"],
        weight_type=QuantType.QInt8,
    )
    return path / "encoder.onnx"


def make_own_models(path: Path) -> Path:
    """Return a store of made-up models: echo, running-sum, pairs, centered and words."""
    save(
        path / "echo.onnx",
        [(f"{dtype}_in", _onnx_type(dtype), ["N", 2]) for dtype in DTYPES],
        [(dtype, _onnx_type(dtype), ["N", 2]) for dtype in DTYPES],
        [("Identity", [f"{dtype}_in"], [dtype]) for dtype in DTYPES],
    )
    # A state that goes in and comes out, a scalar, and an input with a default.
    save(
        path / "running-sum.onnx",
        [("x", FLOAT, ["T"]), ("sum_in", FLOAT, []), ("scale", FLOAT, [])],
        [("sum_out", FLOAT, [])],
        [
            ("ReduceSum", ["x"], ["all"]),
            ("Squeeze", ["all"], ["total"]),
            ("Mul", ["total", "scale"], ["scaled"]),
            ("Add", ["scaled", "sum_in"], ["sum_out"]),
        ],
        [("scale", np.array(1, np.float32))],
    )
    # Two inputs whose first dimensions have one name.
    save(
        path / "pairs.onnx",
        [("left", FLOAT, ["N", 2]), ("right", FLOAT, ["N", 2])],
        [("sum", FLOAT, ["N", 2]), ("ratio", FLOAT, ["N", 2])],
        [("Add", ["left", "right"], ["sum"]), ("Div", ["left", "right"], ["ratio"])],
    )
    # A row's answer depends on the other rows.
    save(
        path / "centered.onnx",
        [("x", FLOAT, ["N", 2])],
        [("y", FLOAT, ["N", 2])],
        [("ReduceMean", ["x"], ["mean"]), ("Sub", ["x", "mean"], ["y"])],
    )
    # One of a fixed batch, and strings.
    save(
        path / "words.onnx",
        [("text", STRING, [2])],
        [("same", STRING, [2])],
        [("Identity", ["text"], ["same"])],
    )
    for name in ("echo", "running-sum", "pairs", "centered", "words"):
        make_contract(
            onnx_file=path / f"{name}.onnx",
            name=name, version="1", store=path / "store", purpose="a test",
            state="sum_in" if name == "running-sum" else None,
        )  # fmt: skip
    return path / "store"
