"""The hot endpoints over real HTTP, in both modes: right answers, and clear refusals."""

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
def test_every_data_set_is_predicted_as_training_saw_it(
    client: Client, dataset: str, store: Path
) -> None:
    """The golden rows over HTTP: what training promised is what a client gets."""
    contract: Contract = read_contract(store / dataset / "1")
    inputs, expected = contract.golden_inputs(), contract.golden_outputs()
    data = inputs[contract.inputs[0].name].tolist()

    answer = client(dataset).post("/predict", json={"data": data})

    assert answer.status_code == 200
    got = np.array(answer.json()["prediction"])
    wanted = expected[contract.prediction.name]
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=contract.golden.rtol, atol=contract.golden.atol)


def test_two_rows_give_two_rows_in_order(iris: httpx.Client) -> None:
    """The book's code answered the first row only."""
    prediction = iris.post("/predict", json={"data": ROWS}).json()["prediction"]

    assert [len(row) for row in prediction] == [3, 3]
    assert [int(np.argmax(row)) for row in prediction] == [0, 2]
    assert all(abs(sum(row) - 1) < 1e-5 for row in prediction)


def test_labels_are_given_a_row_each(iris: httpx.Client) -> None:
    answer = iris.post("/predict/label", json={"data": ROWS})

    assert answer.json() == {"prediction": ["setosa", "virginica"]}


def test_an_answer_says_which_model_made_it(iris: httpx.Client, store: Path) -> None:
    contract = read_contract(store / "iris" / "1")

    headers = iris.post("/predict", json={"data": ROWS}).headers

    assert headers["model-name"] == "iris"
    assert headers["model-version"] == "1"
    assert headers["model-sha256"] == contract.model.sha256


def test_a_form_content_type_is_read_as_json(iris: httpx.Client) -> None:
    """`curl -d` sends one."""
    answer = iris.post(
        "/predict",
        content=json.dumps({"data": ROWS}),
        headers={"content-type": "application/x-www-form-urlencoded"},
    )

    assert answer.status_code == 200


def test_a_regression_predicts_a_row_of_one_number(client: Client) -> None:
    sample = client("diabetes").get("/metadata").json()["data_sample"]

    prediction = client("diabetes").post("/predict", json={"data": sample}).json()["prediction"]

    assert len(prediction) == 1
    assert len(prediction[0]) == 1


@pytest.mark.parametrize("path", ["/predict/label", "/predict/test/label", "/label"])
def test_a_regression_has_no_labels(client: Client, path: str) -> None:
    """An index is no label; 404 says so."""
    method = "POST" if path == "/predict/label" else "GET"

    answer = client("diabetes").request(method, path, json={"data": [[0.0] * 10]})

    assert answer.status_code == 404
    assert answer.json() == {"error": 'the model "diabetes" has no labels'}


GOOD_ROW = "[5.1, 3.5, 1.4, 0.2]"
BAD: dict[str, tuple[str | bytes, int, list[str]]] = {
    "empty body": ("", 400, ["body", "an empty body"]),
    "not json": ("data=1", 400, ["body", "expected JSON", "at byte 0"]),
    "cut json": ('{"data": [[5.1', 400, ["body", "expected JSON"]),
    "two documents": (f'{{"data": [{GOOD_ROW}]}} {{}}', 400, ["body", "expected JSON"]),
    "not utf-8": (b'{"data": "\xff"}', 400, ["body"]),
    "a list": (f"[{GOOD_ROW}]", 400, ["body", '{"data": …}', "a list of 1"]),
    "null": ("null", 400, ["body", "null"]),
    "nothing in it": ("{}", 400, ['missing field "data"']),
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
    "endless digits": (f'{{"data": [[1, 2, 3, {"9" * 5000}]]}}', 400, ["data[0][3]"]),
    "endless nesting": ('{"data": ' + "[" * 100_000, 400, ["data"]),
    "half a surrogate": (r'{"data": [["\ud800", 1, 2, 3]]}', 400, ["data[0][0]:", "a number"]),
    "field of half a surrogate": (r'{"\ud800": 1}', 400, ['missing field "data"']),
    "many fields": (
        json.dumps({str(n): 1 for n in range(1000)}),
        400,
        ['missing field "data"', 'unknown field "4"', "995 more"],
    ),
    "large and wrong": (
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
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_field_expectation_and_what_came(
    iris: httpx.Client, path: str, case: str
) -> None:
    """Never 500, never a prediction for a default; the next request is answered."""
    body, status, said = BAD[case]

    refused = iris.post(path, content=body)
    next_answer = iris.post(path, json={"data": ROWS})

    assert refused.status_code == status
    assert list(refused.json()) == ["error"]
    assert [part for part in said if part not in refused.json()["error"]] == []
    assert refused.headers["content-type"] == "application/json"
    assert next_answer.status_code == 200


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
def test_a_body_over_the_limit_is_refused(server: Start, framing: str) -> None:
    """Without Content-Length the limit must hold, too."""
    url = server(MAX_BODY_BYTES="1000").wait_until_ready().url
    exact = json.dumps({"data": ROWS}).encode().ljust(1000)

    def content(size: int) -> bytes | Iterator[bytes]:
        body = exact.ljust(size)
        return body if framing == "content-length" else iter([body[:600], body[600:]])

    with httpx.Client(base_url=url) as client:
        assert client.post("/predict", content=content(1000)).status_code == 200
        refused = client.post("/predict", content=content(1001))
        huge = client.post("/predict", content=content(3_000_000))
        assert client.post("/predict", json={"data": ROWS}).status_code == 200

    assert refused.status_code == huge.status_code == 413
    assert refused.json()["error"].startswith("body: expected at most 1000 bytes, got ")


def test_a_row_limit_of_the_environment_holds(server: Start) -> None:
    url = server(MAX_BATCH_ROWS="2").wait_until_ready().url

    assert httpx.post(f"{url}/predict", json={"data": ROWS}).status_code == 200
    refused = httpx.post(f"{url}/predict", json={"data": [*ROWS, ROWS[0]]})
    assert refused.status_code == 413
    assert refused.json() == {"error": "data: expected at most 2 rows, got 3"}


def test_a_row_that_overflows_has_no_label(iris: httpx.Client) -> None:
    """Probabilities that are no numbers have no largest one: nothing is made up."""
    data = {"data": [[3.4e38, 3.4e38, -3.4e38, 3.4e38], ROWS[0]]}

    numbers = iris.post("/predict", json=data).json()["prediction"]
    labels = iris.post("/predict/label", json=data).json()["prediction"]

    assert numbers[0] == [None, None, None]
    assert labels == [None, "setosa"]


@pytest.mark.parametrize(
    ("head", "status", "said"),
    [
        (b"nonsense\r\n\r\n", 400, b"Invalid HTTP request received."),
        (
            b"GET / HTTP/1.1\r\nX: " + b"x" * (65536 - 18),
            431,
            b"head: expected at most 65536 bytes",
        ),
    ],
    ids=["no HTTP", "a head without end"],
)
def test_a_head_that_is_none_is_refused_in_the_same_form(
    iris: httpx.Client, head: bytes, status: int, said: bytes
) -> None:
    with connect(str(iris.base_url)) as connection:
        # All is read before the last byte comes: a reset would take the answer away.
        connection.sendall(head[:-1])
        wait_until_read(connection)
        connection.sendall(head[-1:])
        answer = b""
        while piece := connection.recv(65536):
            answer += piece

    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b'\r\n\r\n{"error": "' + said in answer


def test_another_method_is_refused_in_the_same_form(iris: httpx.Client) -> None:
    answer = iris.get("/predict")

    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert answer.json() == {"error": "/predict: expected POST, got GET"}


def test_a_client_that_leaves_in_the_middle_of_its_request_harms_nobody(iris: httpx.Client) -> None:
    with connect(str(iris.base_url)) as leaving:
        leaving.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")

    assert iris.post("/predict", json={"data": ROWS}).status_code == 200
