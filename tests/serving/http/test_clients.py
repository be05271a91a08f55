"""Clients that are not ours, as judges: Triton's own, and the calls that KServe's makes."""

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
    """Triton's client of a running server, by its model's name."""
    clients: list[InferenceServerClient] = []

    def client_of(name: str) -> InferenceServerClient:
        url = (own | running)[name].url
        clients.append(InferenceServerClient(url.removeprefix("http://")))
        return clients[-1]

    yield client_of
    for one in clients:
        one.close()


def values(dtype: str) -> Array:
    """Two rows of a dtype, with what is hard to carry."""
    if dtype == "bool":
        return np.array([[True, False], [False, True]])
    if dtype == "string":
        return np.array([["a", "é\n\0"], ["", "1"]], dtype=object)
    if dtype.startswith("float"):
        info = np.finfo(dtype)
        return np.array([[info.max, info.tiny], [-0.1, 0]], dtype=dtype)
    limits = np.iinfo(dtype)
    return np.array([[limits.min, limits.max], [0, 1]], dtype=dtype)


def asked(name: str, array: Array, *, binary: bool) -> InferInput:
    datatypes: dict[Any, str] = {**DATATYPES}
    dtype = "string" if array.dtype == object else str(array.dtype)
    made = InferInput(name, list(array.shape), datatypes[dtype])
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def test_triton_knows_the_server_and_its_model(triton: Client) -> None:
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
def test_triton_gets_back_every_type_as_it_sent_it(
    triton: Client, *, to_server: bool, from_server: bool
) -> None:
    """All thirteen in one request, as binary data and as JSON, each way."""
    # Its client itself writes no FP16 as JSON.
    inputs = [
        asked(f"{dtype}_in", values(dtype), binary=to_server or dtype == "float16")
        for dtype in DTYPES
    ]
    outputs = [
        InferRequestedOutput(dtype, binary_data=from_server or dtype == "float16")
        for dtype in DTYPES
    ]

    result = triton("echo").infer("echo", inputs, outputs=outputs, request_id="42")

    assert result.get_response()["id"] == "42"
    for dtype in DTYPES:
        got, sent = result.as_numpy(dtype), values(dtype)
        if dtype == "string":
            texts = [one.decode() if isinstance(one, bytes) else one for one in got.ravel()]
            got = np.array(texts, dtype=object).reshape(got.shape)
        assert np.array_equal(got, sent), dtype
        assert dtype == "string" or got.dtype == sent.dtype


@pytest.mark.parametrize("binary", [True, False])
def test_triton_gets_the_outputs_that_it_names(triton: Client, *, binary: bool) -> None:
    left, right = np.ones((3, 2), np.float32), np.full((3, 2), 4, np.float32)
    inputs = [asked("left", left, binary=binary), asked("right", right, binary=binary)]
    client = triton("pairs")

    all_of_them = client.infer("pairs", inputs)
    one = client.infer("pairs", inputs, "1", [InferRequestedOutput("ratio", binary_data=binary)])

    np.testing.assert_array_equal(all_of_them.as_numpy("sum"), left + right)
    np.testing.assert_array_equal(one.as_numpy("ratio"), left / right)
    assert one.as_numpy("sum") is None


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_triton_compresses_both_ways(triton: Client, compression: str) -> None:
    rows = np.zeros((300, 64), np.float32)

    result = triton("digits").infer(
        "digits",
        [asked("input", rows, binary=True)],
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )

    assert result.as_numpy("probabilities").shape == (300, 10)


def test_triton_is_told_what_was_wrong(triton: Client) -> None:
    with pytest.raises(InferenceServerException) as refused:
        triton("iris").infer("iris", [asked("input", np.zeros((1, 3), np.float32), binary=True)])

    assert refused.value.status() == "400"
    assert refused.value.message() == 'inputs[0] "input": expected shape [N,4], got [1,3]'


def kserve(url: str, data: dict[str, Any], name: str) -> httpx.Response:
    """Call infer() with JSON as kserve.InferenceRESTClient does."""
    headers = {"content-type": "application/json"}
    body = json.dumps(data).encode()
    return httpx.post(f"{url}/v2/models/{name}/infer", content=body, headers=headers)


def test_kserves_calls_are_answered(own: dict[str, ServerProcess]) -> None:
    """Its package does not fit the lock; these are its calls (kserve/inference_client.py)."""
    url = own["pairs"].url
    assert httpx.get(f"{url}/v2/health/live").json().get("live") is True
    # This one it parses, of a model it wants the status alone.
    assert httpx.get(f"{url}/v2/health/ready").json().get("ready") is True
    assert httpx.get(f"{url}/v2/models/pairs/ready").is_success
    inputs = [
        {"name": name, "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}
        for name in ("left", "right")
    ]

    answer = kserve(url, {"id": "7", "inputs": inputs}, "pairs")

    # InferResponse.from_bytes: these keys it takes without asking.
    body = answer.json()
    assert (body["id"], body["model_name"], body["model_version"]) == ("7", "pairs", "1")
    assert [(one["name"], one["shape"], one["datatype"]) for one in body["outputs"]] == [
        ("sum", [1, 2], "FP32"),
        ("ratio", [1, 2], "FP32"),
    ]
    assert body["outputs"][0]["data"] == [2, 4]


def test_kserves_binary_call_is_answered(own: dict[str, ServerProcess]) -> None:
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

    answer = httpx.post(
        f"{own['pairs'].url}/v2/models/pairs/infer", content=head + raw + raw, headers=headers
    )

    size = int(answer.headers["Inference-Header-Content-Length"])
    outputs = json.loads(answer.content[:size])["outputs"]
    assert [one["parameters"]["binary_data_size"] for one in outputs] == [8, 8]
    np.testing.assert_array_equal(np.frombuffer(answer.content[size:], "<f4"), [2, 4, 1, 1])


def test_kserves_errors_have_its_form(own: dict[str, ServerProcess]) -> None:
    """It reads `error` where the content type is exactly this."""
    answer = kserve(own["pairs"].url, {"inputs": []}, "pairs")

    assert not answer.is_success
    assert answer.headers["content-type"] == "application/json"
    assert "error" in answer.json()


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


def test_java_gets_predictions(running: dict[str, ServerProcess], tmp_path: Path) -> None:
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
