"""Create the models of the benchmark: small, slow, wide, and of given sizes, with contracts.

Run as `python -m benchmarks.models STORE [MEGABYTES …]` in a new process: its imports would
otherwise share pages with the servers, whose memory is measured.
"""

import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from onnx import TensorProto, helper

from artifact.verify import session_of
from benchmarks.samples import FEATURES, ROW, SAMPLES
from training.import_onnx import make_contract
from training.train import train

_OPSET, _IR = 21, 10
_WIDTH = 1024
_SLOW_SECONDS = 0.003
_WIDE_FEATURES, _CLASSES = 784, 10


def create(store: Path) -> None:
    """Publish all models to an empty store."""
    train(dataset="iris", version="1", store=store)
    iris = onnx.load(store / "iris" / "1" / "model.onnx")
    (store / "zipmap.onnx").write_bytes(with_zipmap(iris).SerializeToString())
    _publish(store, "slow", slow())
    _publish(store, "wide", layers(_WIDE_FEATURES, 128, 1))
    samples = {"iris": ROW, "slow": [1.0] * FEATURES}
    answers = {
        name: {"row": row, "answer": _answer(store, name, row)} for name, row in samples.items()
    }
    (store / SAMPLES).write_text(json.dumps(answers), encoding="utf-8")


def with_zipmap(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a classifier as skl2onnx exports it by default: labels, and a list of dictionaries."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    (probabilities,) = graph.output
    classes = probabilities.type.tensor_type.shape.dim[1].dim_value
    graph.node.append(
        helper.make_node(
            "ZipMap", [probabilities.name], ["output_probability"], domain="ai.onnx.ml",
            classlabels_int64s=range(classes),
        ),
        )  # fmt: skip
    graph.node.append(
        helper.make_node("ArgMax", [probabilities.name], ["output_label"], axis=1, keepdims=0)
    )
    del graph.output[:]
    dictionary = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    graph.output.append(helper.make_tensor_value_info("output_label", TensorProto.INT64, ["N"]))
    graph.output.append(
        helper.make_value_info("output_probability", helper.make_sequence_type_proto(dictionary))
    )
    if not any(opset.domain == "ai.onnx.ml" for opset in result.opset_import):
        result.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return result


def slow() -> onnx.ModelProto:
    """Return a model with as many layers as make one row take about 3 ms on this machine.

    Its weights exceed the cache of a core, so the time is that of reading the weights: a batch of
    rows takes little longer than one row.
    """
    count = 10
    for _ in range(3):
        # Time per layer depends on the cache that the weights fit into, so measure again.
        count = max(1, round(count * _SLOW_SECONDS / _seconds(_slow(count))))
    return _slow(count)


def layers(features: int, width: int, count: int) -> onnx.ModelProto:
    """Return a network of `count` square layers between an input and a few classes."""
    random = np.random.default_rng(0)
    sizes = [features, *[width] * (count + 1), _CLASSES]
    nodes, weights, value = [], [], "input"
    for at, (rows, columns) in enumerate(pairwise(sizes)):
        weight = random.standard_normal((rows, columns), dtype=np.float32) * np.sqrt(2 / rows)
        weights.append(onnx.numpy_helper.from_array(weight.astype(np.float32), f"weight{at}"))
        nodes.append(helper.make_node("MatMul", [value, f"weight{at}"], [f"product{at}"]))
        nodes.append(helper.make_node("Relu", [f"product{at}"], [f"layer{at}"]))
        value = f"layer{at}"
    nodes.append(helper.make_node("Softmax", [value], ["probabilities"], axis=-1))
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", features])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", _CLASSES])],
        weights,
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(graph, ir_version=_IR, opset_imports=opsets)


def create_sized(store: Path, megabytes: int) -> None:
    """Publish a model of about that size, unless the store has it."""
    name = f"sized-{megabytes}"
    if not (store / name).exists():
        # Layers of 4 MB, or one layer of 1 MB.
        width = _WIDTH if megabytes >= 4 else _WIDTH // 2
        count = max(1, round(megabytes * 1e6 / (4 * width**2)))
        _publish(store, name, layers(FEATURES, width, count))


def _slow(count: int) -> onnx.ModelProto:
    return layers(FEATURES, _WIDTH, count)


def _seconds(model: onnx.ModelProto) -> float:
    """Return the median time of one row in seconds."""
    session = session_of(model.SerializeToString())
    row = {"input": np.full((1, FEATURES), 1, dtype=np.float32)}
    return median(_timed(lambda: session.run(None, row)) for _ in range(50))


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _answer(store: Path, name: str, row: list[float]) -> list[float]:
    session = session_of(store / name / "1" / "model.onnx")
    answer: list[float] = session.run(None, {"input": np.array([row], np.float32)})[0][0].tolist()
    return answer


def _publish(store: Path, name: str, model: onnx.ModelProto) -> None:
    file = store / f"{name}.onnx"
    file.write_bytes(model.SerializeToString())
    make_contract(
        onnx_file=file, name=name, version="1", store=store, purpose="be measured", owner="nobody"
    )


if __name__ == "__main__":
    for size in sys.argv[2:]:
        create_sized(Path(sys.argv[1]), int(size))
    if not sys.argv[2:]:
        create(Path(sys.argv[1]))
