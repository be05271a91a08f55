"""k8s/kserve against the server that it starts: its settings, its ports and paths, its names."""

import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_load.settings import ModelLoadSettings
from release.local.server_process import ServerProcess
from tests.manifests import KSERVE, Object, environment, named, only, render
from tests.pod_security import violations
from tests.servers import ROWS

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


@pytest.fixture
def runtime() -> Any:
    return only(render(KSERVE), "ServingRuntime")["spec"]


@pytest.fixture
def service() -> Any:
    return only(render(KSERVE), "InferenceService")


@pytest.fixture
def container(runtime: Object) -> Any:
    """The server's, by the name that KServe knows it by."""
    return named(runtime["containers"], "kserve-container")


def set_by(runtime: Object, container: Object) -> dict[str, str]:
    """The environment of the server as the kubelet makes it."""
    return environment({"metadata": {}, "spec": runtime}, container)


def test_the_service_names_the_runtime_and_the_protocol(runtime: Any, service: Any) -> None:
    model = service["spec"]["predictor"]["model"]

    assert model["runtime"] == only(render(KSERVE), "ServingRuntime")["metadata"]["name"]
    assert model["protocolVersion"] in runtime["protocolVersions"]
    formats = [one["name"] for one in runtime["supportedModelFormats"]]
    assert model["modelFormat"]["name"] in formats


def test_the_service_has_the_models_name(service: Any) -> None:
    """KServe's clients ask /v2/models/<InferenceService>/infer."""
    name, version = service["spec"]["predictor"]["model"]["storageUri"].split("/")[-2:]

    assert service["metadata"]["name"] == name
    assert version == "1"


def test_it_is_the_image_of_load_mode_with_settings_that_there_are(
    runtime: Any, container: Any, service: Any
) -> None:
    assert container["image"] == "model_load"
    settings = {name.upper() for name in ModelLoadSettings.model_fields}
    assert set(set_by(runtime, container)) <= settings
    assert {one["name"] for one in service["spec"]["predictor"]["model"]["env"]} <= settings


def test_it_may_run_where_pods_are_restricted(runtime: Any) -> None:
    template = {"spec": {"containers": runtime["containers"]}}

    assert violations(template) == []


def test_probes_and_predictions_are_where_it_serves(
    store: Path, runtime: Any, container: Any
) -> None:
    """Started by its environment, but for the port and for where the tests have an artifact."""
    told = set_by(runtime, container)
    (port,) = container["ports"]
    assert str(port["containerPort"]) == told["PORT"]
    assert runtime["annotations"]["prometheus.kserve.io/port"] == told["PORT"]
    assert told["MODEL_DIR"] == "/mnt/models"
    here = {"PORT": "0", "MODEL_DIR": str(store / "iris" / "1")}
    clean = {"PATH": os.environ["PATH"]}
    data = {"inputs": [{"name": "input", "shape": [2, 4], "datatype": "FP32", "data": ROWS}]}

    with ServerProcess("model_load", told | here, environment=clean) as running:
        running.wait_until_ready()
        for probe in PROBES:
            assert container[probe]["httpGet"]["port"] == port["name"]
            assert httpx.get(running.url + container[probe]["httpGet"]["path"]).status_code == 200
        path = runtime["annotations"]["prometheus.kserve.io/path"]
        assert httpx.get(running.url + path).status_code == 200
        answer = httpx.post(f"{running.url}/v2/models/iris/infer", json=data)

    assert answer.status_code == 200
