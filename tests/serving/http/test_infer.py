"""The Open Inference Protocol v2 over real HTTP, in both modes: what it says, to the letter."""

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
    """An FP32 input of a request, nested as its shape."""
    return {"name": name, "datatype": "FP32", "shape": list(np.shape(data)), "data": data, **fields}


def both(**fields: Any) -> dict[str, Any]:
    """A right request for the pairs."""
    return {"inputs": [tensor("left", LEFT), tensor("right", RIGHT)], **fields}


def infer(client: httpx.Client, body: Any, model: str = "pairs") -> httpx.Response:
    return client.post(f"/v2/models/{model}/infer", json=body)


def refused(answer: httpx.Response, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    (message,) = answer.json().values()
    return str(message)


def with_binary(head: dict[str, Any], *pieces: bytes) -> dict[str, Any]:
    """A request with binary data, as keywords for post()."""
    text = json.dumps(head).encode()
    headers = {JSON_BYTES: str(len(text)), "Content-Type": "application/octet-stream"}
    return {"content": b"".join([text, *pieces]), "headers": headers}


def binary_input(name: str, data: Any) -> tuple[dict[str, Any], bytes]:
    piece = np.array(data, "<f4").tobytes()
    about = tensor(name, data, parameters={"binary_data_size": len(piece)})
    del about["data"]
    return about, piece


@pytest.mark.parametrize("dataset", DATASETS)
def test_golden_rows_come_out_as_training_saw_them(
    client: Client, dataset: str, store: Path
) -> None:
    contract: Contract = read_contract(store / dataset / "1")
    (given,), (made,) = contract.golden_inputs().values(), contract.golden_outputs().values()

    answer = infer(client(dataset), {"inputs": [tensor("input", given.tolist())]}, dataset)

    (output,) = answer.json()["outputs"]
    assert output["shape"] == list(made.shape)
    got = np.array(output["data"]).reshape(output["shape"])
    np.testing.assert_allclose(got, made, contract.golden.rtol, contract.golden.atol)
    assert answer.headers["model-version"] == "1"


def test_the_server_says_what_it_is(pairs: httpx.Client) -> None:
    about = pairs.get("/v2").json()

    assert set(about) == {"name", "version", "extensions"}
    assert about["extensions"] == ["binary_tensor_data"]


@pytest.mark.parametrize("path", ["pairs", "pairs/versions/1"])
def test_a_model_is_described_and_ready(pairs: httpx.Client, path: str) -> None:
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
    assert infer(pairs, both(), path).status_code == 200


@pytest.mark.parametrize("path", ["pears", "pairs/versions/2", "pairs/1"])
def test_another_model_or_version_is_404(pairs: httpx.Client, path: str) -> None:
    said = refused(infer(pairs, both(), path), 404)

    assert said == f"/v2/models/{path}: no such model; this server serves pairs, version 1"
    assert pairs.get(f"/v2/models/{path}").status_code == 404
    assert pairs.get(f"/v2/models/{path}/ready").status_code == 404


def test_an_answer_has_all_outputs_in_the_contracts_order(pairs: httpx.Client) -> None:
    answer = infer(pairs, both(id="42")).json()

    assert answer == {
        "model_name": "pairs",
        "model_version": "1",
        "id": "42",
        "outputs": [
            {"name": "sum", "datatype": "FP32", "shape": [2, 2], "data": [3, 2, 3, -4]},
            {"name": "ratio", "datatype": "FP32", "shape": [2, 2], "data": [0.5, None, None, -0.5]},
        ],
    }


def test_an_answer_has_an_id_though_the_request_had_none(pairs: httpx.Client) -> None:
    """Clients parse it."""
    assert infer(pairs, both()).json()["id"] == ""


def test_flat_data_is_what_nested_data_is(pairs: httpx.Client) -> None:
    flat = both()
    for one in flat["inputs"]:
        one["data"] = np.ravel(one["data"]).tolist()

    assert infer(pairs, flat).json() == infer(pairs, both()).json()


def test_inputs_may_come_in_any_order(pairs: httpx.Client) -> None:
    turned = both()
    turned["inputs"].reverse()

    assert infer(pairs, turned).json() == infer(pairs, both()).json()


def test_only_the_outputs_that_are_asked_for_are_answered(pairs: httpx.Client) -> None:
    answer = infer(pairs, both(outputs=[{"name": "ratio"}])).json()

    assert [one["name"] for one in answer["outputs"]] == ["ratio"]


def test_binary_data_goes_in_and_comes_out(pairs: httpx.Client) -> None:
    """What is no number in JSON is exact."""
    (left, left_piece), (right, right_piece) = (
        binary_input("left", LEFT),
        binary_input("right", RIGHT),
    )
    body = {"inputs": [left, right], "parameters": {"binary_data_output": True}}

    answer = pairs.post("/v2/models/pairs/infer", **with_binary(body, left_piece, right_piece))

    assert answer.headers["content-type"] == "application/octet-stream"
    size = int(answer.headers[JSON_BYTES])
    outputs = json.loads(answer.content[:size])["outputs"]
    assert [one["parameters"] for one in outputs] == [{"binary_data_size": 16}] * 2
    assert "data" not in outputs[0]
    got = np.frombuffer(answer.content[size:], "<f4")
    with np.errstate(divide="ignore"):
        expected = np.concatenate([np.add(LEFT, RIGHT), np.divide(LEFT, RIGHT)])
    np.testing.assert_array_equal(got, expected.astype(np.float32).ravel())


def test_binary_and_json_are_mixed_as_asked(pairs: httpx.Client) -> None:
    """One output's own parameter overrides the request's."""
    right, piece = binary_input("right", RIGHT)
    body = {
        "inputs": [tensor("left", LEFT), right],
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "sum", "parameters": {"binary_data": False}}, {"name": "ratio"}],
    }

    answer = pairs.post("/v2/models/pairs/infer", **with_binary(body, piece))

    size = int(answer.headers[JSON_BYTES])
    first, second = json.loads(answer.content[:size])["outputs"]
    assert first["data"] == [3, 2, 3, -4]
    assert second["parameters"] == {"binary_data_size": len(answer.content) - size}


def test_a_body_without_json_is_one_row_of_the_one_input(iris: httpx.Client) -> None:
    """A raw binary request: the sizes follow from the number of bytes."""
    row = np.array(ROWS[0], "<f4").tobytes()

    answer = iris.post("/v2/models/iris/infer", content=row, headers={JSON_BYTES: "0"})

    size = int(answer.headers[JSON_BYTES])
    got = np.frombuffer(answer.content[size:], "<f4")
    assert got.shape == (3,)
    assert got.argmax() == 0
    short = iris.post("/v2/models/iris/infer", content=row[:-1], headers={JSON_BYTES: "0"})
    assert refused(short) == '"input": expected the bytes of FP32[1,4], got 15 of them'


def test_the_largest_number_is_taken_as_it_is_written(pairs: httpx.Client) -> None:
    """Its shortest text, as numpy and Java print it, is a little more than it is."""
    body = both()
    body["inputs"][1]["data"] = [3.4028235e38, 1, 1, 1]

    assert infer(pairs, body).json()["outputs"][0]["data"][0] == pytest.approx(3.4028235e38)


def test_an_empty_tensor_may_not_be_of_any_size(pairs: httpx.Client) -> None:
    """It would be an answer of megabytes to a request of bytes, or none that fits at all."""
    for size in (10**7, 2**61, 2**70):
        body = {"inputs": [tensor("left", LEFT) | {"shape": [0, 2], "data": []}]}
        body["inputs"] += [tensor("right", RIGHT) | {"shape": [size, 2], "data": []}]
        refused(infer(pairs, body))


def test_a_body_without_json_is_not_for_two_inputs(pairs: httpx.Client) -> None:
    answer = pairs.post("/v2/models/pairs/infer", content=b"1234", headers={JSON_BYTES: "0"})

    assert "only a model with one input takes a body without JSON" in refused(answer)


@pytest.mark.parametrize(
    ("changed", "said"),
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
def test_a_wrong_input_is_named(pairs: httpx.Client, changed: dict[str, Any], said: str) -> None:
    body = both()
    body["inputs"][1] |= changed

    assert refused(infer(pairs, body)).startswith(said)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "body: object missing required field `inputs`"),
        ([], "body: expected `object`, got `array`"),
        ({"inputs": []}, 'inputs: expected "left", "right", got no "left", "right"'),
        ({"inputs": [tensor("left", LEFT)]}, 'inputs: expected "left", "right", got no "right"'),
        ({"inputs": {}}, "inputs: expected `array`, got `object`"),
        (both(id=7), "id: expected `str | null`, got `int`"),
        (
            both(parameters={"sequence_id": 7}),
            "parameters: sequence_id is not supported by this server",
        ),
        (both(parameters={"a": []}), "parameters[...]: expected"),
        (both(outputs=[{"name": "product"}]), 'outputs[0] "product": expected "sum", "ratio"'),
        (both(outputs=[{"name": "sum"}, {"name": "sum"}]), 'outputs[1] "sum": expected once'),
        (
            both(parameters={"binary_data_output": "yes"}),
            "parameters: expected binary_data_output true or false, got 'yes'",
        ),
        (
            both(outputs=[{"name": "sum", "parameters": {"classification": 2}}]),
            'outputs[0] "sum": classification is not supported by this server',
        ),
    ],
)
def test_a_wrong_request_is_named(pairs: httpx.Client, body: Any, said: str) -> None:
    assert refused(infer(pairs, body)).startswith(said)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b'{"id": "\xed\xa0\x80"}', b"[" * 10_000])
def test_what_is_no_json_is_refused(pairs: httpx.Client, text: bytes) -> None:
    refused(pairs.post("/v2/models/pairs/infer", content=text))


@pytest.mark.parametrize(
    ("size", "announced", "said"),
    [
        (12, None, "expected 16 bytes for FP32[2,2], got binary_data_size 12"),
        (-1, None, "expected binary_data_size in bytes, got -1"),
        (32, None, "expected 32 bytes of binary data, got 16"),
        (16, "9999", "body: expected 9999 bytes of JSON, as announced, got"),
        (16, "-1", "Inference-Header-Content-Length: expected bytes of JSON, got '-1'"),
        (16, "1" * 5000, "Inference-Header-Content-Length: expected bytes of JSON, got '111"),
    ],
)
def test_binary_data_of_another_size_is_refused(
    pairs: httpx.Client, size: int, announced: str | None, said: str
) -> None:
    right, piece = binary_input("right", RIGHT)
    right["parameters"]["binary_data_size"] = size
    request = with_binary({"inputs": [tensor("left", LEFT), right]}, piece)
    if announced:
        request["headers"][JSON_BYTES] = announced

    assert said in refused(pairs.post("/v2/models/pairs/infer", **request))


def test_bytes_that_no_tensor_has_are_refused(pairs: httpx.Client) -> None:
    right, piece = binary_input("right", RIGHT)
    request = with_binary({"inputs": [tensor("left", LEFT), right]}, piece, b"more")

    said = refused(pairs.post("/v2/models/pairs/infer", **request))

    assert said == "body: expected 16 bytes of binary data, got 20"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (struct.pack("<I", 9) + b"short", "expected 2 strings, each after its length in 4 bytes"),
        (struct.pack("<I", 1) + b"a", "expected 2 strings"),
        (struct.pack("<I", 1) + b"a" + struct.pack("<I", 1) + b"\xff", "expected strings in UTF-8"),
    ],
)
def test_strings_that_are_none_are_refused(
    own: dict[str, ServerProcess], data: bytes, said: str
) -> None:
    about = {
        "name": "text", "datatype": "BYTES", "shape": [2],
        "parameters": {"binary_data_size": len(data)},
    }  # fmt: skip

    answer = httpx.post(
        f"{own['words'].url}/v2/models/words/infer", **with_binary({"inputs": [about]}, data)
    )

    assert said in refused(answer)


def test_strings_go_in_and_come_out(own: dict[str, ServerProcess]) -> None:
    """Of a fixed batch."""
    about = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["é\n", ""]}

    answer = httpx.post(f"{own['words'].url}/v2/models/words/infer", json={"inputs": [about]})

    assert answer.json()["outputs"][0] == {
        "name": "same", "datatype": "BYTES", "shape": [2], "data": ["é\n", ""],
    }  # fmt: skip


def test_state_goes_in_and_comes_out(own: dict[str, ServerProcess]) -> None:
    """A scalar, a dynamic dimension, and an input with a default that may be left out."""
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
    answer = httpx.post(url, json={"inputs": [*body["inputs"], scaled]})
    assert answer.json()["outputs"][0]["data"] == [156]


def test_metadata_says_which_inputs_are_state_and_optional(own: dict[str, ServerProcess]) -> None:
    about = httpx.get(f"{own['running-sum'].url}/metadata").json()

    assert [(one["name"], one["state"], one["optional"]) for one in about["inputs"]] == [
        ("x", False, False),
        ("sum_in", True, False),
        ("scale", False, True),
    ]
    assert about["batching"] is False


def test_a_model_that_is_not_for_rows_names_the_path_that_is(
    own: dict[str, ServerProcess],
) -> None:
    for name in ("pairs", "words"):
        said = refused(httpx.post(f"{own[name].url}/predict", json={"data": [[1, 2]]}), 404)
        assert said.endswith(f"POST /v2/models/{name}/infer")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP"])
def test_a_compressed_request_is_unpacked(pairs: httpx.Client, encoding: str) -> None:
    pack = zlib.compress if encoding == "deflate" else gzip.compress
    body = pack(json.dumps(both()).encode())

    answer = pairs.post(
        "/v2/models/pairs/infer", content=body, headers={"Content-Encoding": encoding}
    )

    assert answer.json() == infer(pairs, both()).json()


@pytest.mark.parametrize(
    ("encoding", "body", "status", "said"),
    [
        ("gzip", b"no gzip", 400, "body: expected gzip: "),
        ("gzip", gzip.compress(b"{}")[:-4], 400, "body: expected gzip, got incomplete data"),
        ("br", b"", 415, "Content-Encoding: expected gzip or deflate, got br"),
        ("gzip", gzip.compress(b"") * 1000, 400, "body: expected at most 16 members of gzip"),
        ("gzip", gzip.compress(bytes(1 << 23)), 413, "body: expected at most 4194304 bytes aft"),
    ],
    # Not by the bytes: those of gzip hold the time, which differs from worker to worker.
    ids=["not gzip", "cut off", "unknown", "many parts", "large"],
)
def test_what_does_not_unpack_is_refused(
    iris: httpx.Client, encoding: str, body: bytes, status: int, said: str
) -> None:
    """The last is 8 kB that would be 8 MB."""
    for path in ("/v2/models/iris/infer", "/predict"):
        answer = iris.post(path, content=body, headers={"Content-Encoding": encoding})
        assert refused(answer, status).startswith(said)


def test_a_large_answer_is_compressed_for_who_takes_it(client: Client) -> None:
    digits = client("digits")
    rows = [[0.0] * 64] * 300
    answers = [
        digits.post("/predict", json={"data": rows}, headers={"Accept-Encoding": accepted})
        for accepted in ("gzip", "identity", "gzip;q=0", "br, gzip;q=0.5")
    ]

    encodings = [answer.headers.get("content-encoding") for answer in answers]
    assert encodings == ["gzip", None, None, "gzip"]
    assert len({answer.text for answer in answers}) == 1
    assert int(answers[0].headers["content-length"]) < len(answers[0].content) / 2


def test_a_small_answer_is_not_compressed(iris: httpx.Client) -> None:
    answer = iris.post("/predict", json={"data": ROWS}, headers={"Accept-Encoding": "gzip"})

    assert "content-encoding" not in answer.headers


def test_more_rows_than_the_limit_are_413(server: Start) -> None:
    running = server(MAX_BATCH_ROWS="2").wait_until_ready()
    body = {"inputs": [tensor("input", [*ROWS, ROWS[0]])]}

    answer = httpx.post(f"{running.url}/v2/models/iris/infer", json=body)

    assert refused(answer, 413) == 'inputs[0] "input": expected at most 2 rows, got 3'


def test_another_method_is_405(pairs: httpx.Client) -> None:
    answer = pairs.get("/v2/models/pairs/infer")

    assert refused(answer, 405) == "/v2/models/pairs/infer: expected POST, got GET"
    assert answer.headers["allow"] == "POST"


def test_requests_are_counted_whatever_the_version_in_the_path(pairs: httpx.Client) -> None:
    def count() -> float:
        lines = pairs.get("/metrics").text.splitlines()
        counter = 'http_requests_total{endpoint="/v2/models/{name}/infer",status="2xx"} '
        return sum(float(line.removeprefix(counter)) for line in lines if line.startswith(counter))

    before = count()
    infer(pairs, both())
    infer(pairs, both(), "pairs/versions/1")

    assert count() == before + 2
