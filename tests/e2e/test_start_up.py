"""Measure start and scale-out with the three sources of a model: image, pull, image volume.

The fastest source depends on the node's disk, the registry, and the model's size, so the tests
print the seconds and assert only that each source serves.
"""

import json
import os
import shlex
import subprocess
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from release.images.build import ReleaseImages
from release.kubernetes import golden
from release.kubernetes.deploy import apply, destroy
from release.kubernetes.kubectl import get
from release.kubernetes.manifests import Manifests
from release.kubernetes.port_forward import HTTP, port_forward
from release.kubernetes.resolve import Options, resolve_release
from release.kubernetes.track import Track
from tests.e2e.conftest import NAMESPACE, ROOT, STORE, make
from training.import_onnx import make_contract

SMALL, LARGE = "e2e/1", "e2e-large/1"
LARGE_FLOATS = 125_000_000  # 500 MB
REPLICAS = 4
SECONDS = 600
SOURCES = {
    "image": ("model_in_image", None),
    "pull": ("model_load", "volume"),
    "image volume": ("model_load", "image_volume"),
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A model of 500 MB that predicts fast: each row sums a few entries of a large table."""
    if (STORE / LARGE).exists():
        return
    table = np.random.default_rng(0).random((LARGE_FLOATS // 8, 8), dtype=np.float32)
    nodes = [
        helper.make_node("Cast", ["input"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["parts"]),
        helper.make_node("ReduceSum", ["parts", "axes"], ["output"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 8])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "axes"),
        ],
    )
    path = tmp_path_factory.mktemp("large") / "large.onnx"
    opset = helper.make_opsetid("", 21)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), str(path))
    sample = path.with_name("rows.npz")
    np.savez(sample, input=np.array([[0, 1, 2, 3], [7, 70, 700, 7000]], dtype=np.float32))
    make_contract(
        onnx_file=path,
        sample=sample,
        name="e2e-large",
        version="1",
        store=STORE,
        purpose="measure the start of a large model",
    )


@pytest.fixture(scope="module")
def manifests(images: str, large: None) -> dict[tuple[str, str], Manifests]:
    """Both models with every source, in images that the registry or the cluster has."""
    for model in (SMALL, LARGE):
        for target in ("build", "build-model"):
            assert make(target, "model_load", model, "IMAGE_TAG=e2e-1").returncode == 0
    assert make("compatibility", "model_load", SMALL).returncode == 0
    record = ROOT / "docs" / "compatibility.json"
    resolved = {}
    for model in (SMALL, LARGE):
        release = ReleaseImages.of(
            Path("models") / model, str(STORE), "e2e-1", os.environ.get("REGISTRY")
        )
        for name, (mode, source) in SOURCES.items():
            options = Options(NAMESPACE, source, os.environ["LOAD_IMAGE"], record)
            resolved[name, model] = resolve_release(
                release,
                mode,  # type: ignore[arg-type]
                str(STORE),
                options,
            )
    return resolved


def evict() -> None:
    """Remove every image of this project from the nodes, because the images share layers."""
    for node in get("nodes")["items"]:
        for image in node["status"]["images"]:
            for name in (name for name in image["names"] if "model" in name.rpartition("/")[2]):
                command = [*shlex.split(os.environ["EVICT_IMAGE"]), name]
                subprocess.run(command, check=False, capture_output=True)


def first_prediction_seconds(manifests: Manifests) -> float:
    """Deploy one replica; return the seconds until its first correct prediction."""

    def one_replica(manifest: dict[str, object]) -> None:
        if manifest["kind"] == "HorizontalPodAutoscaler":
            manifest["spec"]["minReplicas"] = 1  # type: ignore[index]

    track = Track(manifests.namespace, manifests.deployment)
    started = time.monotonic()
    apply(manifests, "stable", one_replica)
    while not (routed := track.routed_pods()):
        assert time.monotonic() < started + SECONDS
        time.sleep(0.1)
    with port_forward(manifests.namespace, routed.pop(), HTTP) as url:
        golden.check(url, manifests.contract)
    return time.monotonic() - started


def scale_out_seconds(manifests: Manifests) -> float:
    """Scale from one replica to several; return the seconds until all are ready."""
    track = Track(manifests.namespace, manifests.deployment)
    started = time.monotonic()
    track.scale(REPLICAS)
    while track.read()["status"].get("readyReplicas", 0) < REPLICAS:
        assert time.monotonic() < started + SECONDS
        time.sleep(0.1)
    return time.monotonic() - started


@pytest.mark.parametrize("model", [SMALL, LARGE])
@pytest.mark.parametrize("source", SOURCES)
def test_start_and_scale_out(
    manifests: dict[tuple[str, str], Manifests], source: str, model: str
) -> None:
    release = manifests[source, model]
    size = release.contract.model.size_bytes
    cold = bool(os.environ.get("EVICT_IMAGE") and os.environ.get("REGISTRY"))
    if not cold:
        print("\ncold node: not measured; set REGISTRY and EVICT_IMAGE to measure it")
    for node in ("cold", "warm")[not cold :]:
        if node == "cold":
            evict()
        try:
            first = first_prediction_seconds(release)
            scaled = scale_out_seconds(release)
        finally:
            destroy(release.namespace, release.deployment)
        print(
            json.dumps(
                {
                    "way": source,
                    "model_bytes": size,
                    "node": node,
                    "first_prediction_seconds": round(first, 1),
                    f"from_1_to_{REPLICAS}_ready_seconds": round(scaled, 1),
                }
            ),
            flush=True,
        )
