"""Tests of the Open Inference Protocol v2 over real HTTP, in both modes."""

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from artifact.contract import Contract, read_contract
from release.local.server_process import ServerProcess
from tests.servers import DATASETS, ROWS, Start

Client = Callable[[str], httpx.Client]
JSON_BYTES = "Inference-Header-Content-Length"
LEFT, RIGHT = [[1.0, 2.0], [3.0, 4.0]], [[2.0, 0.0], [0.0, -8.0]]


def tensor(name: str, data: Any, **fields: Any) -> dict[str, Any]:
    """An FP32 input tensor of a request, its data nested like its shape."""
    return {"name": name, "datatype": "FP32", "shape": list(np.shape(data)), "data": data, **fields}


def valid_request(**fields: Any) -> dict[str, Any]:
    """A valid request for the model `pairs`."""
    return {"inputs": [tensor("left", LEFT), tensor("right", RIGHT)], **fields}


def infer(client: httpx.Client, body: Any, model: str = "pairs") -> httpx.Response:
    return client.post(f"/v2/models/{model}/infer", json=body)


def error_of(response: httpx.Response, status: int = 400) -> str:
    """The message of an error response with this status."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (message,) = response.json().values()
    return str(message)


def with_binary(fields: dict[str, Any], *pieces: bytes) -> dict[str, Any]:
    """A request with binary data, as keyword arguments of post()."""
    text = json.dumps(fields).encode()
    headers = {JSON_BYTES: str(len(text)), "Content-Type": "application/octet-stream"}
    return {"content": b"".join([text, *pieces]), "headers": headers}


def binary_input(name: str, data: Any) -> tuple[dict[str, Any], bytes]:
    """An input tensor and its binary data."""
    piece = np.array(data, "<f4").tobytes()
    fields = tensor(name, data, parameters={"binary_data_size": len(piece)})
    del fields["data"]
    return fields, piece


@pytest.mark.parametrize("dataset", DATASETS)
def test_golden_rows_are_reproduced_over_http(client: Client, dataset: str, store: Path) -> None:
    contract: Contract = read_contract(store / dataset / "1")
    (rows,), (expected,) = contract.golden_inputs().values(), contract.golden_outputs().values()

    response = infer(client(dataset), {"inputs": [tensor("input", rows.tolist())]}, dataset)

    (output,) = response.json()["outputs"]
    assert output["shape"] == list(expected.shape)
    actual = np.array(output["data"]).reshape(output["shape"])
    np.testing.assert_allclose(actual, expected, contract.golden.rtol, contract.golden.atol)
    assert response.headers["model-version"] == "1"


def test_server_metadata_lists_the_extensions(pairs: httpx.Client) -> None:
    metadata = pairs.get("/v2").json()

    assert set(metadata) == {"name", "version", "extensions"}
    assert metadata["extensions"] == ["binary_tensor_data"]


@pytest.mark.parametrize("path", ["pairs", "pairs/versions/1"])
def test_model_metadata_and_readiness_are_served_for_name_and_version(
    pairs: httpx.Client, path: str
) -> None:
    assert pairs.get(f"/v2/models/{path}").json() == {
        "name": "pairs",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [
            {"name": "left", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "right", "datatype": "FP32", "shape": [-1, 2]},
        ],
        "outputs": [
            {"name": "sum", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "ratio", "datatype": "FP32", "shape": [-1, 2]},
        ],
    }
    assert pairs.get(f"/v2/models/{path}/ready").json() == {"name": "pairs", "ready": True}
    assert infer(pairs, valid_request(), path).status_code == 200


@pytest.mark.parametrize("path", ["pears", "pairs/versions/2", "pairs/1"])
def test_other_models_and_versions_return_404(pairs: httpx.Client, path: str) -> None:
    message = error_of(infer(pairs, valid_request(), path), 404)

    assert message == f"/v2/models/{path}: no such model; this server serves pairs, version 1"
    assert pairs.get(f"/v2/models/{path}").status_code == 404
    assert pairs.get(f"/v2/models/{path}/ready").status_code == 404


def test_response_has_all_outputs_in_the_order_of_the_contract(pairs: httpx.Client) -> None:
    response = infer(pairs, valid_request(id="42")).json()

    assert response == {
        "model_name": "pairs",
        "model_version": "1",
        "id": "42",
        "outputs": [
            {"name": "sum", "datatype": "FP32", "shape": [2, 2], "data": [3, 2, 3, -4]},
            {"name": "ratio", "datatype": "FP32", "shape": [2, 2], "data": [0.5, None, None, -0.5]},
        ],
    }


def test_response_to_a_request_without_id_has_an_empty_id(pairs: httpx.Client) -> None:
    """Some clients require the field."""
    assert infer(pairs, valid_request()).json()["id"] == ""


def test_flat_and_nested_data_are_equivalent(pairs: httpx.Client) -> None:
    flat = valid_request()
    for fields in flat["inputs"]:
        fields["data"] = np.ravel(fields["data"]).tolist()

    assert infer(pairs, flat).json() == infer(pairs, valid_request()).json()


def test_inputs_may_have_any_order(pairs: httpx.Client) -> None:
    reordered = valid_request()
    reordered["inputs"].reverse()

    assert infer(pairs, reordered).json() == infer(pairs, valid_request()).json()


def test_only_requested_outputs_are_returned(pairs: httpx.Client) -> None:
    response = infer(pairs, valid_request(outputs=[{"name": "ratio"}])).json()

    assert [output["name"] for output in response["outputs"]] == ["ratio"]


def test_binary_inputs_and_outputs_are_exact(pairs: httpx.Client) -> None:
    """Also infinity, which is null in JSON."""
    (left, left_piece), (right, right_piece) = (
        binary_input("left", LEFT),
        binary_input("right", RIGHT),
    )
    body = {"inputs": [left, right], "parameters": {"binary_data_output": True}}

    response = pairs.post("/v2/models/pairs/infer", **with_binary(body, left_piece, right_piece))

    assert response.headers["content-type"] == "application/octet-stream"
    size = int(response.headers[JSON_BYTES])
    outputs = json.loads(response.content[:size])["outputs"]
    assert [output["parameters"] for output in outputs] == [{"binary_data_size": 16}] * 2
    assert "data" not in outputs[0]
    actual = np.frombuffer(response.content[size:], "<f4")
    with np.errstate(divide="ignore"):
        expected = np.concatenate([np.add(LEFT, RIGHT), np.divide(LEFT, RIGHT)])
    np.testing.assert_array_equal(actual, expected.astype(np.float32).ravel())


def test_binary_and_json_outputs_can_be_mixed(pairs: httpx.Client) -> None:
    """The parameter of an output overrides the parameter of the request."""
    right, piece = binary_input("right", RIGHT)
    body = {
        "inputs": [tensor("left", LEFT), right],
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "sum", "parameters": {"binary_data": False}}, {"name": "ratio"}],
    }

    response = pairs.post("/v2/models/pairs/infer", **with_binary(body, piece))

    size = int(response.headers[JSON_BYTES])
    first, second = json.loads(response.content[:size])["outputs"]
    assert first["data"] == [3, 2, 3, -4]
    assert second["parameters"] == {"binary_data_size": len(response.content) - size}


def test_body_without_json_is_one_row_of_the_only_input(iris: httpx.Client) -> None:
    """A raw binary request: the shape follows from the number of bytes."""
    row = np.array(ROWS[0], "<f4").tobytes()

    response = iris.post("/v2/models/iris/infer", content=row, headers={JSON_BYTES: "0"})

    size = int(response.headers[JSON_BYTES])
    scores = np.frombuffer(response.content[size:], "<f4")
    assert scores.shape == (3,)
    assert scores.argmax() == 0
    short = iris.post("/v2/models/iris/infer", content=row[:-1], headers={JSON_BYTES: "0"})
    assert error_of(short) == '"input": expected the bytes of FP32[1,4], got 15 of them'


def test_largest_float32_is_accepted_as_numpy_prints_it(pairs: httpx.Client) -> None:
    """Its shortest text is slightly more than the number itself."""
    body = valid_request()
    body["inputs"][1]["data"] = [3.4028235e38, 1, 1, 1]

    assert infer(pairs, body).json()["outputs"][0]["data"][0] == pytest.approx(3.4028235e38)


def test_dimensions_of_an_empty_tensor_are_limited(pairs: httpx.Client) -> None:
    """Otherwise a request of a few bytes could get a response of megabytes."""
    for size in (10**7, 2**61, 2**70):
        body = {"inputs": [tensor("left", LEFT) | {"shape": [0, 2], "data": []}]}
        body["inputs"] += [tensor("right", RIGHT) | {"shape": [size, 2], "data": []}]
        error_of(infer(pairs, body))


def test_body_without_json_is_rejected_for_two_inputs(pairs: httpx.Client) -> None:
    response = pairs.post("/v2/models/pairs/infer", content=b"1234", headers={JSON_BYTES: "0"})

    assert "only a model with one input takes a body without JSON" in error_of(response)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "middle"}, 'inputs[1].name: expected "left", "right", got "middle"'),
        ({"name": "left"}, 'inputs[1] "left": expected once, got it again'),
        ({"datatype": "FP64"}, 'inputs[1] "right": expected datatype FP32, got FP64'),
        ({"shape": [4]}, 'inputs[1] "right": expected shape [N,2], got [4]'),
        ({"shape": [2, 3]}, 'inputs[1] "right": expected shape [N,2], got [2,3]'),
        ({"shape": [-1, 2]}, 'inputs[1] "right": expected shape [N,2], got [-1,2]'),
        (
            {"shape": [1, 2], "data": [1, 2]},
            'inputs[1] "right": expected shape [N,2] with N = 2, got [1,2]',
        ),
        ({"shape": "2"}, "inputs[1].shape: expected `array`, got `str`"),
        ({"data": [1, 2, 3]}, 'inputs[1] "right".data: expected 4 values for shape [2,2], got 3'),
        (
            {"data": [[1, 2], [3, 4], [5, 6]]},
            'inputs[1] "right".data: expected lists of shape [2,2], got [3,2]',
        ),
        ({"data": [[1, 2], [3, "4"]]}, 'inputs[1] "right".data[1][1]: expected `float`, got `str`'),
        ({"data": [1, 2, None, 4]}, 'inputs[1] "right".data[2]: expected `float`, got `null`'),
        ({"data": [1, 2, 3, 1e39]}, 'inputs[1] "right".data[3]: expected `float` < 3.40'),
        (
            {"shape": [0, 2], "data": []},
            'inputs[1] "right": expected shape [N,2] with N = 2, got [0,2]',
        ),
        ({"shape": [2] * 99}, 'inputs[1] "right": expected shape [N,2], got 99 dimensions'),
        (
            {"parameters": {"shared_memory_region": "r"}},
            'inputs[1] "right": shared_memory_region is not supported by this server',
        ),
        ({"data": "1"}, 'inputs[1] "right".data: expected `array`, got `str`'),
        (
            {"data": [[1, 2], [3]]},
            'inputs[1] "right".data: expected lists of shape [2,2], got ragged ones',
        ),
        (
            {"parameters": {"binary_data_size": 16}},
            'inputs[1] "right": expected either "data" or binary_data_size, got both',
        ),
    ],
)
def test_error_names_the_invalid_input(
    pairs: httpx.Client, changed: dict[str, Any], message: str
) -> None:
    body = valid_request()
    body["inputs"][1] |= changed

    assert error_of(infer(pairs, body)).startswith(message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "body: object missing required field `inputs`"),
        ([], "body: expected `object`, got `array`"),
        ({"inputs": []}, 'inputs: expected "left", "right", got no "left", "right"'),
        ({"inputs": [tensor("left", LEFT)]}, 'inputs: expected "left", "right", got no "right"'),
        ({"inputs": {}}, "inputs: expected `array`, got `object`"),
        (valid_request(id=7), "id: expected `str | null`, got `int`"),
        (
            valid_request(parameters={"sequence_id": 7}),
            "parameters: sequence_id is not supported by this server",
        ),
        (valid_request(parameters={"a": []}), "parameters[...]: expected"),
        (
            valid_request(outputs=[{"name": "product"}]),
            'outputs[0] "product": expected "sum", "ratio"',
        ),
        (
            valid_request(outputs=[{"name": "sum"}, {"name": "sum"}]),
            'outputs[1] "sum": expected once',
        ),
        (
            valid_request(parameters={"binary_data_output": "yes"}),
            "parameters: expected binary_data_output true or false, got 'yes'",
        ),
        (
            valid_request(outputs=[{"name": "sum", "parameters": {"classification": 2}}]),
            'outputs[0] "sum": classification is not supported by this server',
        ),
    ],
)
def test_error_names_the_invalid_field(pairs: httpx.Client, body: Any, message: str) -> None:
    assert error_of(infer(pairs, body)).startswith(message)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b'{"id": "\xed\xa0\x80"}', b"[" * 10_000])
def test_invalid_json_is_rejected(pairs: httpx.Client, text: bytes) -> None:
    error_of(pairs.post("/v2/models/pairs/infer", content=text))


@pytest.mark.parametrize(
    ("size", "announced", "message"),
    [
        (12, None, "expected 16 bytes for FP32[2,2], got binary_data_size 12"),
        (-1, None, "expected binary_data_size in bytes, got -1"),
        (32, None, "expected 32 bytes of binary data, got 16"),
        (16, "9999", "body: expected 9999 bytes of JSON, as announced, got"),
        (16, "-1", "Inference-Header-Content-Length: expected bytes of JSON, got '-1'"),
        (16, "1" * 5000, "Inference-Header-Content-Length: expected bytes of JSON, got '111"),
    ],
)
def test_binary_data_of_wrong_size_is_rejected(
    pairs: httpx.Client, size: int, announced: str | None, message: str
) -> None:
    right, piece = binary_input("right", RIGHT)
    right["parameters"]["binary_data_size"] = size
    request = with_binary({"inputs": [tensor("left", LEFT), right]}, piece)
    if announced:
        request["headers"][JSON_BYTES] = announced

    assert message in error_of(pairs.post("/v2/models/pairs/infer", **request))


def test_bytes_after_the_last_tensor_are_rejected(pairs: httpx.Client) -> None:
    right, piece = binary_input("right", RIGHT)
    request = with_binary({"inputs": [tensor("left", LEFT), right]}, piece, b"more")

    message = error_of(pairs.post("/v2/models/pairs/infer", **request))

    assert message == "body: expected 16 bytes of binary data, got 20"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (struct.pack("<I", 9) + b"short", "expected 2 strings, each after its length in 4 bytes"),
        (struct.pack("<I", 1) + b"a", "expected 2 strings"),
        (struct.pack("<I", 1) + b"a" + struct.pack("<I", 1) + b"\xff", "expected strings in UTF-8"),
    ],
)
def test_invalid_binary_strings_are_rejected(
    own: dict[str, ServerProcess], data: bytes, message: str
) -> None:
    fields = {
        "name": "text", "datatype": "BYTES", "shape": [2],
        "parameters": {"binary_data_size": len(data)},
    }  # fmt: skip

    response = httpx.post(
        f"{own['words'].url}/v2/models/words/infer", **with_binary({"inputs": [fields]}, data)
    )

    assert message in error_of(response)


def test_strings_are_returned_unchanged(own: dict[str, ServerProcess]) -> None:
    """By a model with a fixed batch size."""
    fields = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["é\n", ""]}

    response = httpx.post(f"{own['words'].url}/v2/models/words/infer", json={"inputs": [fields]})

    assert response.json()["outputs"][0] == {
        "name": "same", "datatype": "BYTES", "shape": [2], "data": ["é\n", ""],
    }  # fmt: skip


def test_state_and_optional_inputs(own: dict[str, ServerProcess]) -> None:
    """A scalar state, a dynamic dimension, and an input whose default applies if it is omitted."""
    url = f"{own['running-sum'].url}/v2/models/running-sum/infer"
    total = 0.0
    for values in ([1.0, 2.0], [3.0], [4.0, 5.0, 6.0]):
        state = {"name": "sum_in", "datatype": "FP32", "shape": [], "data": [total]}
        body = {"inputs": [tensor("x", values), state]}
        (output,) = httpx.post(url, json=body).json()["outputs"]
        assert output["shape"] == []
        (total,) = output["data"]
    assert total == 21
    scaled = {"name": "scale", "datatype": "FP32", "shape": [], "data": [10]}
    response = httpx.post(url, json={"inputs": [*body["inputs"], scaled]})
    assert response.json()["outputs"][0]["data"] == [156]


def test_metadata_marks_state_and_optional_inputs(own: dict[str, ServerProcess]) -> None:
    metadata = httpx.get(f"{own['running-sum'].url}/metadata").json()

    assert [(field["name"], field["state"], field["optional"]) for field in metadata["inputs"]] == [
        ("x", False, False),
        ("sum_in", True, False),
        ("scale", False, True),
    ]
    assert metadata["batching"] is False


def test_predict_of_a_model_without_rows_names_the_infer_path(
    own: dict[str, ServerProcess],
) -> None:
    for name in ("pairs", "words"):
        message = error_of(httpx.post(f"{own[name].url}/predict", json={"data": [[1, 2]]}), 404)
        assert message.endswith(f"POST /v2/models/{name}/infer")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP"])
def test_compressed_body_is_decompressed(pairs: httpx.Client, encoding: str) -> None:
    compress = zlib.compress if encoding == "deflate" else gzip.compress
    body = compress(json.dumps(valid_request()).encode())

    response = pairs.post(
        "/v2/models/pairs/infer", content=body, headers={"Content-Encoding": encoding}
    )

    assert response.json() == infer(pairs, valid_request()).json()


@pytest.mark.parametrize(
    ("encoding", "body", "status", "message"),
    [
        ("gzip", b"not gzip", 400, "body: expected gzip: "),
        ("gzip", gzip.compress(b"{}")[:-4], 400, "body: expected gzip, got incomplete data"),
        ("br", b"", 415, "Content-Encoding: expected gzip or deflate, got br"),
        ("gzip", gzip.compress(b"") * 1000, 400, "body: expected at most 16 members of gzip"),
        ("gzip", gzip.compress(bytes(1 << 23)), 413, "body: expected at most 4194304 bytes aft"),
    ],
    # Explicit ids: gzip data contains the time, so generated ids would differ between the processes
    # of pytest-xdist.
    ids=["not gzip", "cut off", "unknown", "many parts", "large"],
)
def test_invalid_compressed_body_is_rejected(
    iris: httpx.Client, encoding: str, body: bytes, status: int, message: str
) -> None:
    """The last case is a body of 8 kB that decompresses to 8 MB."""
    for path in ("/v2/models/iris/infer", "/predict"):
        response = iris.post(path, content=body, headers={"Content-Encoding": encoding})
        assert error_of(response, status).startswith(message)


def test_large_response_is_compressed_if_the_client_accepts_gzip(client: Client) -> None:
    digits = client("digits")
    rows = [[0.0] * 64] * 300
    responses = [
        digits.post("/predict", json={"data": rows}, headers={"Accept-Encoding": accepted})
        for accepted in ("gzip", "identity", "gzip;q=0", "br, gzip;q=0.5")
    ]

    encodings = [response.headers.get("content-encoding") for response in responses]
    assert encodings == ["gzip", None, None, "gzip"]
    assert len({response.text for response in responses}) == 1
    assert int(responses[0].headers["content-length"]) < len(responses[0].content) / 2


def test_small_response_is_not_compressed(iris: httpx.Client) -> None:
    response = iris.post("/predict", json={"data": ROWS}, headers={"Accept-Encoding": "gzip"})

    assert "content-encoding" not in response.headers


def test_more_rows_than_the_limit_return_413(server: Start) -> None:
    running = server(MAX_BATCH_ROWS="2").wait_until_ready()
    body = {"inputs": [tensor("input", [*ROWS, ROWS[0]])]}

    response = httpx.post(f"{running.url}/v2/models/iris/infer", json=body)

    assert error_of(response, 413) == 'inputs[0] "input": expected at most 2 rows, got 3'


def test_wrong_method_returns_405(pairs: httpx.Client) -> None:
    response = pairs.get("/v2/models/pairs/infer")

    assert error_of(response, 405) == "/v2/models/pairs/infer: expected POST, got GET"
    assert response.headers["allow"] == "POST"


def test_requests_with_and_without_version_are_counted_together(pairs: httpx.Client) -> None:
    def count() -> float:
        lines = pairs.get("/metrics").text.splitlines()
        counter = 'http_requests_total{endpoint="/v2/models/{name}/infer",status="2xx"} '
        return sum(float(line.removeprefix(counter)) for line in lines if line.startswith(counter))

    before = count()
    infer(pairs, valid_request())
    infer(pairs, valid_request(), "pairs/versions/1")

    assert count() == before + 2
