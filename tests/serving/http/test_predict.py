"""Tests of /predict and /predict/label over real HTTP, in both modes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from artifact.contract import Contract, read_contract
from tests.servers import ROWS, Start, connect, wait_until_read

Client = Callable[[str], httpx.Client]


@pytest.mark.parametrize("dataset", ["iris", "digits", "diabetes"])
def test_golden_rows_are_reproduced_over_http(client: Client, dataset: str, store: Path) -> None:
    """Clients get the predictions that training computed."""
    contract: Contract = read_contract(store / dataset / "1")
    inputs, expected = contract.golden_inputs(), contract.golden_outputs()
    data = inputs[contract.inputs[0].name].tolist()

    response = client(dataset).post("/predict", json={"data": data})

    assert response.status_code == 200
    actual = np.array(response.json()["prediction"])
    golden = expected[contract.prediction.name]
    assert actual.shape == golden.shape
    np.testing.assert_allclose(actual, golden, rtol=contract.golden.rtol, atol=contract.golden.atol)


def test_each_row_gets_a_prediction_in_order(iris: httpx.Client) -> None:
    """The book's code returned a prediction for the first row only."""
    prediction = iris.post("/predict", json={"data": ROWS}).json()["prediction"]

    assert [len(row) for row in prediction] == [3, 3]
    assert [int(np.argmax(row)) for row in prediction] == [0, 2]
    assert all(abs(sum(row) - 1) < 1e-5 for row in prediction)


def test_each_row_gets_a_label(iris: httpx.Client) -> None:
    response = iris.post("/predict/label", json={"data": ROWS})

    assert response.json() == {"prediction": ["setosa", "virginica"]}


def test_response_headers_identify_the_model(iris: httpx.Client, store: Path) -> None:
    contract = read_contract(store / "iris" / "1")

    headers = iris.post("/predict", json={"data": ROWS}).headers

    assert headers["model-name"] == "iris"
    assert headers["model-version"] == "1"
    assert headers["model-sha256"] == contract.model.sha256


def test_body_with_the_content_type_of_a_form_is_read_as_json(iris: httpx.Client) -> None:
    """`curl -d` sends this content type."""
    response = iris.post(
        "/predict",
        content=json.dumps({"data": ROWS}),
        headers={"content-type": "application/x-www-form-urlencoded"},
    )

    assert response.status_code == 200


def test_regression_returns_one_number_per_row(client: Client) -> None:
    sample = client("diabetes").get("/metadata").json()["data_sample"]

    prediction = client("diabetes").post("/predict", json={"data": sample}).json()["prediction"]

    assert len(prediction) == 1
    assert len(prediction[0]) == 1


@pytest.mark.parametrize("path", ["/predict/label", "/predict/test/label", "/label"])
def test_label_paths_of_a_regression_return_404(client: Client, path: str) -> None:
    """It has no labels."""
    method = "POST" if path == "/predict/label" else "GET"

    response = client("diabetes").request(method, path, json={"data": [[0.0] * 10]})

    assert response.status_code == 404
    assert response.json() == {"error": 'the model "diabetes" has no labels'}


GOOD_ROW = "[5.1, 3.5, 1.4, 0.2]"
# Body, expected status, and expected parts of the message.
INVALID: dict[str, tuple[str | bytes, int, list[str]]] = {
    "empty body": ("", 400, ["body", "an empty body"]),
    "not json": ("data=1", 400, ["body", "expected JSON", "at byte 0"]),
    "cut json": ('{"data": [[5.1', 400, ["body", "expected JSON"]),
    "two documents": (f'{{"data": [{GOOD_ROW}]}} {{}}', 400, ["body", "expected JSON"]),
    "not utf-8": (b'{"data": "\xff"}', 400, ["body"]),
    "a list": (f"[{GOOD_ROW}]", 400, ["body", '{"data": …}', "a list of 1"]),
    "null": ("null", 400, ["body", "null"]),
    "empty object": ("{}", 400, ['missing field "data"']),
    "misspelt": (f'{{"dta": [{GOOD_ROW}]}}', 400, ['missing field "data"', '"dta"']),
    "unknown field": (f'{{"data": [{GOOD_ROW}], "x": 1}}', 400, ['unknown field "x"']),
    "not a list": ('{"data": 1}', 400, ["data:", "a list of one row or more", "got 1"]),
    "null data": ('{"data": null}', 400, ["data:", "a list of one row or more", "null"]),
    "one flat row": (f'{{"data": {GOOD_ROW}}}', 400, ["data[0]:", "a list of 4 numbers", "5.1"]),
    "no rows": ('{"data": []}', 400, ["data:", "one row or more", "got 0"]),
    "empty row": ('{"data": [[]]}', 400, ["data[0]:", "4 numbers", "got 0"]),
    "too few": ('{"data": [[5.1, 3.5, 1.4]]}', 400, ["data[0]:", "sepal length", "got 3"]),
    "too many": ('{"data": [[5.1, 3.5, 1.4, 0.2, 1]]}', 400, ["data[0]:", "4", "got 5"]),
    "ragged": (f'{{"data": [{GOOD_ROW}, [5.1]]}}', 400, ["data[1]:", "4", "got 1"]),
    "deep": ('{"data": [[[5.1], 3.5, 1.4, 0.2]]}', 400, ["data[0][0]:", "number", "list of 1"]),
    "string": ('{"data": [[5.1, "3.5", 1.4, 0.2]]}', 400, ["data[0][1]:", "a number", '"3.5"']),
    "true": ('{"data": [[5.1, 3.5, true, 0.2]]}', 400, ["data[0][2]:", "a number", "true"]),
    "null in a row": ('{"data": [[5.1, 3.5, 1.4, null]]}', 400, ["data[0][3]:", "null"]),
    "object": ('{"data": [[5.1, 3.5, 1.4, {}]]}', 400, ["data[0][3]:", "an object"]),
    "nan": ('{"data": [[5.1, 3.5, 1.4, NaN]]}', 400, ["data[0][3]:", "finite", "NaN"]),
    "infinity": ('{"data": [[5.1, 3.5, 1.4, -Infinity]]}', 400, ["data[0][3]:", "-Infinity"]),
    "over float64": ('{"data": [[5.1, 3.5, 1.4, 1e999]]}', 400, ["data[0][3]:", "finite"]),
    "over float32": ('{"data": [[5.1, 3.5, 1.4, 1e39]]}', 400, ["data[0][3]:", "float32", "1e+39"]),
    "too many digits": (f'{{"data": [[1, 2, 3, {"9" * 5000}]]}}', 400, ["data[0][3]"]),
    "too deeply nested": ('{"data": ' + "[" * 100_000, 400, ["data"]),
    "lone surrogate": (r'{"data": [["\ud800", 1, 2, 3]]}', 400, ["data[0][0]:", "a number"]),
    "field of a lone surrogate": (r'{"\ud800": 1}', 400, ['missing field "data"']),
    "many fields": (
        json.dumps({str(n): 1 for n in range(1000)}),
        400,
        ['missing field "data"', 'unknown field "4"', "995 more"],
    ),
    "large and invalid": (
        f'{{"data": [{",".join([GOOD_ROW] * 1000)}, ["{"x" * 300_000}", 1, 2, 3]]}}',
        400,
        ["data[1000][0]: expected `float`, got `str`"],
    ),
    "large and too many": (
        f'{{"data": [{",".join([GOOD_ROW] * 20_000)}]}}',
        413,
        ["data: expected `array` of length <= 1024"],
    ),
    "too many rows": (f'{{"data": [{",".join([GOOD_ROW] * 1025)}]}}', 413, ["1024", "1025"]),
}


@pytest.mark.parametrize("path", ["/predict", "/predict/label"])
@pytest.mark.parametrize("case", INVALID)
def test_invalid_body_is_rejected_with_field_expected_and_actual(
    iris: httpx.Client, path: str, case: str
) -> None:
    """Not status 500, and no prediction from a default value. The next request succeeds."""
    body, status, parts = INVALID[case]

    rejected = iris.post(path, content=body)
    next_response = iris.post(path, json={"data": ROWS})

    assert rejected.status_code == status
    assert list(rejected.json()) == ["error"]
    assert [part for part in parts if part not in rejected.json()["error"]] == []
    assert rejected.headers["content-type"] == "application/json"
    assert next_response.status_code == 200


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
def test_body_over_the_limit_is_rejected(server: Start, framing: str) -> None:
    """Also without Content-Length."""
    url = server(MAX_BODY_BYTES="1000").wait_until_ready().url
    exact = json.dumps({"data": ROWS}).encode().ljust(1000)

    def content(size: int) -> bytes | Iterator[bytes]:
        body = exact.ljust(size)
        return body if framing == "content-length" else iter([body[:600], body[600:]])

    with httpx.Client(base_url=url) as client:
        assert client.post("/predict", content=content(1000)).status_code == 200
        rejected = client.post("/predict", content=content(1001))
        huge = client.post("/predict", content=content(3_000_000))
        assert client.post("/predict", json={"data": ROWS}).status_code == 200

    assert rejected.status_code == huge.status_code == 413
    assert rejected.json()["error"].startswith("body: expected at most 1000 bytes, got ")


def test_max_batch_rows_limits_the_rows_of_a_request(server: Start) -> None:
    url = server(MAX_BATCH_ROWS="2").wait_until_ready().url

    assert httpx.post(f"{url}/predict", json={"data": ROWS}).status_code == 200
    rejected = httpx.post(f"{url}/predict", json={"data": [*ROWS, ROWS[0]]})
    assert rejected.status_code == 413
    assert rejected.json() == {"error": "data: expected at most 2 rows, got 3"}


def test_row_with_nan_scores_has_no_label(iris: httpx.Client) -> None:
    """These values overflow inside the model. NaN scores have no largest one."""
    data = {"data": [[3.4e38, 3.4e38, -3.4e38, 3.4e38], ROWS[0]]}

    predictions = iris.post("/predict", json=data).json()["prediction"]
    labels = iris.post("/predict/label", json=data).json()["prediction"]

    assert predictions[0] == [None, None, None]
    assert labels == [None, "setosa"]


@pytest.mark.parametrize(
    ("head", "status", "message"),
    [
        (b"nonsense\r\n\r\n", 400, b"Invalid HTTP request received."),
        (
            b"GET / HTTP/1.1\r\nX: " + b"x" * (65536 - 18),
            431,
            b"head: expected at most 65536 bytes",
        ),
    ],
    ids=["not HTTP", "too large"],
)
def test_invalid_request_head_gets_a_json_error(
    iris: httpx.Client, head: bytes, status: int, message: bytes
) -> None:
    with connect(str(iris.base_url)) as connection:
        # The server reads everything before the last byte is sent. If it closed the connection with
        # unread data, the kernel would send a reset, and the response would be lost.
        connection.sendall(head[:-1])
        wait_until_read(connection)
        connection.sendall(head[-1:])
        response = b""
        while piece := connection.recv(65536):
            response += piece

    assert response.startswith(b"HTTP/1.1 %d " % status)
    assert b'\r\n\r\n{"error": "' + message in response


def test_wrong_method_gets_a_json_error(iris: httpx.Client) -> None:
    response = iris.get("/predict")

    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert response.json() == {"error": "/predict: expected POST, got GET"}


def test_client_that_disconnects_during_its_request_affects_no_other(iris: httpx.Client) -> None:
    with connect(str(iris.base_url)) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")

    assert iris.post("/predict", json={"data": ROWS}).status_code == 200
