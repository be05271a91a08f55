"""k8s/kserve agrees with the server: its settings, ports, paths, and names."""

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
    """The server's container, which KServe finds by this name."""
    return named(runtime["containers"], "kserve-container")


def environment_of(runtime: Object, container: Object) -> dict[str, str]:
    """Return the environment of the server as the kubelet resolves it."""
    return environment({"metadata": {}, "spec": runtime}, container)


def test_the_service_names_the_runtime_and_the_protocol(runtime: Any, service: Any) -> None:
    model = service["spec"]["predictor"]["model"]

    assert model["runtime"] == only(render(KSERVE), "ServingRuntime")["metadata"]["name"]
    assert model["protocolVersion"] in runtime["protocolVersions"]
    formats = [entry["name"] for entry in runtime["supportedModelFormats"]]
    assert model["modelFormat"]["name"] in formats


def test_the_service_has_the_name_of_the_model(service: Any) -> None:
    """KServe's clients send requests to /v2/models/<InferenceService>/infer."""
    name, version = service["spec"]["predictor"]["model"]["storageUri"].split("/")[-2:]

    assert service["metadata"]["name"] == name
    assert version == "1"


def test_the_runtime_is_the_model_load_image_with_existing_settings(
    runtime: Any, container: Any, service: Any
) -> None:
    assert container["image"] == "model_load"
    settings = {name.upper() for name in ModelLoadSettings.model_fields}
    assert set(environment_of(runtime, container)) <= settings
    assert {entry["name"] for entry in service["spec"]["predictor"]["model"]["env"]} <= settings


def test_the_runtime_meets_the_restricted_pod_security_standard(runtime: Any) -> None:
    template = {"spec": {"containers": runtime["containers"]}}

    assert violations(template) == []


def test_the_server_answers_probes_and_predictions(
    store: Path, runtime: Any, container: Any
) -> None:
    """With the environment of the runtime, except for the port and the path of the model."""
    values = environment_of(runtime, container)
    (port,) = container["ports"]
    assert str(port["containerPort"]) == values["PORT"]
    assert runtime["annotations"]["prometheus.kserve.io/port"] == values["PORT"]
    assert values["MODEL_DIR"] == "/mnt/models"
    local = {"PORT": "0", "MODEL_DIR": str(store / "iris" / "1")}
    clean = {"PATH": os.environ["PATH"]}
    data = {"inputs": [{"name": "input", "shape": [2, 4], "datatype": "FP32", "data": ROWS}]}

    with ServerProcess("model_load", values | local, environment=clean) as running:
        running.wait_until_ready()
        for probe in PROBES:
            assert container[probe]["httpGet"]["port"] == port["name"]
            assert httpx.get(running.url + container[probe]["httpGet"]["path"]).status_code == 200
        path = runtime["annotations"]["prometheus.kserve.io/path"]
        assert httpx.get(running.url + path).status_code == 200
        response = httpx.post(f"{running.url}/v2/models/iris/infer", json=data)

    assert response.status_code == 200
