"""Tests with the clients of other projects: Triton's, Java's, and the calls of KServe's."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from artifact.contract import Array
from release.local.server_process import ServerProcess
from serving.inference.codecs.tensor_codec import DATATYPES
from tests.fakes import unavailable
from tests.own_models import DTYPES
from tests.servers import ROWS

Client = Callable[[str], InferenceServerClient]


@pytest.fixture
def triton(own: dict[str, ServerProcess], running: dict[str, ServerProcess]) -> Iterator[Client]:
    """Triton's client of the server of a model, by the model's name."""
    clients: list[InferenceServerClient] = []

    def client_of(name: str) -> InferenceServerClient:
        url = (own | running)[name].url
        clients.append(InferenceServerClient(url.removeprefix("http://")))
        return clients[-1]

    yield client_of
    for client in clients:
        client.close()


def values(dtype: str) -> Array:
    """Two rows of a dtype, with values that are hard to transfer."""
    if dtype == "bool":
        return np.array([[True, False], [False, True]])
    if dtype == "string":
        return np.array([["a", "é\n\0"], ["", "1"]], dtype=object)
    if dtype.startswith("float"):
        info = np.finfo(dtype)
        return np.array([[info.max, info.tiny], [-0.1, 0]], dtype=dtype)
    limits = np.iinfo(dtype)
    return np.array([[limits.min, limits.max], [0, 1]], dtype=dtype)


def infer_input(name: str, array: Array, *, binary: bool) -> InferInput:
    datatypes: dict[Any, str] = {**DATATYPES}
    dtype = "string" if array.dtype == object else str(array.dtype)
    tensor = InferInput(name, list(array.shape), datatypes[dtype])
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def test_triton_reads_health_and_metadata(triton: Client) -> None:
    client = triton("iris")

    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("iris")
    assert client.is_model_ready("iris", "1")
    assert not client.is_model_ready("iris", "2")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert client.get_model_metadata("iris")["outputs"] == [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}
    ]


@pytest.mark.parametrize(("to_server", "from_server"), list(product((True, False), repeat=2)))
def test_triton_receives_every_datatype_unchanged(
    triton: Client, *, to_server: bool, from_server: bool
) -> None:
    """All 13 in one request, as binary data and as JSON in both directions."""
    # Triton's client does not support FP16 as JSON.
    inputs = [
        infer_input(f"{dtype}_in", values(dtype), binary=to_server or dtype == "float16")
        for dtype in DTYPES
    ]
    outputs = [
        InferRequestedOutput(dtype, binary_data=from_server or dtype == "float16")
        for dtype in DTYPES
    ]

    result = triton("echo").infer("echo", inputs, outputs=outputs, request_id="42")

    assert result.get_response()["id"] == "42"
    for dtype in DTYPES:
        received, sent = result.as_numpy(dtype), values(dtype)
        if dtype == "string":
            texts = [
                text.decode() if isinstance(text, bytes) else text for text in received.ravel()
            ]
            received = np.array(texts, dtype=object).reshape(received.shape)
        assert np.array_equal(received, sent), dtype
        assert dtype == "string" or received.dtype == sent.dtype


@pytest.mark.parametrize("binary", [True, False])
def test_triton_receives_only_requested_outputs(triton: Client, *, binary: bool) -> None:
    left, right = np.full((3, 2), 1, np.float32), np.full((3, 2), 4, np.float32)
    inputs = [infer_input("left", left, binary=binary), infer_input("right", right, binary=binary)]
    client = triton("pairs")

    both = client.infer("pairs", inputs)
    ratio = client.infer("pairs", inputs, "1", [InferRequestedOutput("ratio", binary_data=binary)])

    np.testing.assert_array_equal(both.as_numpy("sum"), left + right)
    np.testing.assert_array_equal(ratio.as_numpy("ratio"), left / right)
    assert ratio.as_numpy("sum") is None


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_triton_compresses_requests_and_responses(triton: Client, compression: str) -> None:
    rows = np.zeros((300, 64), np.float32)

    result = triton("digits").infer(
        "digits",
        [infer_input("input", rows, binary=True)],
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )

    assert result.as_numpy("probabilities").shape == (300, 10)


def test_triton_receives_the_error_message(triton: Client) -> None:
    with pytest.raises(InferenceServerException) as rejected:
        triton("iris").infer(
            "iris", [infer_input("input", np.zeros((1, 3), np.float32), binary=True)]
        )

    assert rejected.value.status() == "400"
    assert rejected.value.message() == 'inputs[0] "input": expected shape [N,4], got [1,3]'


def kserve(url: str, data: dict[str, Any], name: str) -> httpx.Response:
    """Send a prediction as kserve.InferenceRESTClient.infer() does."""
    headers = {"content-type": "application/json"}
    body = json.dumps(data).encode()
    return httpx.post(f"{url}/v2/models/{name}/infer", content=body, headers=headers)


def test_calls_of_the_kserve_client_succeed(own: dict[str, ServerProcess]) -> None:
    """The package conflicts with the lock file. The calls are from kserve/inference_client.py."""
    url = own["pairs"].url
    assert httpx.get(f"{url}/v2/health/live").json().get("live") is True
    # The client parses the readiness of the server. Of a model it reads the status only.
    assert httpx.get(f"{url}/v2/health/ready").json().get("ready") is True
    assert httpx.get(f"{url}/v2/models/pairs/ready").is_success
    inputs = [
        {"name": name, "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}
        for name in ("left", "right")
    ]

    response = kserve(url, {"id": "7", "inputs": inputs}, "pairs")

    # InferResponse.from_bytes requires these keys.
    body = response.json()
    assert (body["id"], body["model_name"], body["model_version"]) == ("7", "pairs", "1")
    assert [
        (output["name"], output["shape"], output["datatype"]) for output in body["outputs"]
    ] == [
        ("sum", [1, 2], "FP32"),
        ("ratio", [1, 2], "FP32"),
    ]
    assert body["outputs"][0]["data"] == [2, 4]


def test_binary_call_of_the_kserve_client_succeeds(own: dict[str, ServerProcess]) -> None:
    """InferRequest.to_rest() with raw data: JSON first, then the tensors."""
    raw = np.array([1, 2], "<f4").tobytes()
    inputs = [
        {"name": name, "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
        for name in ("left", "right")
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {
        "Inference-Header-Content-Length": str(len(head)),
        "content-type": "application/octet-stream",
    }

    response = httpx.post(
        f"{own['pairs'].url}/v2/models/pairs/infer", content=head + raw + raw, headers=headers
    )

    size = int(response.headers["Inference-Header-Content-Length"])
    outputs = json.loads(response.content[:size])["outputs"]
    assert [output["parameters"]["binary_data_size"] for output in outputs] == [8, 8]
    np.testing.assert_array_equal(np.frombuffer(response.content[size:], "<f4"), [2, 4, 1, 1])


def test_errors_can_be_read_by_the_kserve_client(own: dict[str, ServerProcess]) -> None:
    """It reads `error` only if the content type is exactly application/json."""
    response = kserve(own["pairs"].url, {"inputs": []}, "pairs")

    assert not response.is_success
    assert response.headers["content-type"] == "application/json"
    assert "error" in response.json()


JAVA_CLIENT = """
import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;

class Client {
    public static void main(String[] args) throws Exception {
        byte[] body = args[1].getBytes();
        BodyPublisher whole = BodyPublishers.ofByteArray(body);
        BodyPublisher chunked = BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body));
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(args[0]));
        HttpClient client = HttpClient.newHttpClient();
        for (BodyPublisher publisher : new BodyPublisher[] {whole, chunked, whole}) {
            request.POST(publisher);
            System.out.println(client.send(request.build(), BodyHandlers.ofString()).body());
        }
    }
}
"""


def test_java_receives_predictions(running: dict[str, ServerProcess], tmp_path: Path) -> None:
    """Java's HttpClient offers HTTP/2 with `Upgrade: h2c`, with fixed and with chunked bodies."""
    if shutil.which("javac") is None:
        unavailable("needs a Java development kit")
    source = tmp_path / "Client.java"
    source.write_text(JAVA_CLIENT, encoding="utf-8")
    url, body = f"{running['iris'].url}/predict", json.dumps({"data": ROWS})

    printed = subprocess.run(
        ["java", source, url, body], capture_output=True, check=True, text=True, timeout=60
    ).stdout

    assert printed.splitlines() == [httpx.post(url, content=body).text] * 3
