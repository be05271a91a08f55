"""The paths that are not hot, over real HTTP in both modes."""

import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from artifact.contract import read_contract
from tests.servers import DATASETS, ROWS, Start

Client = Callable[[str], httpx.Client]


def test_health_is_the_books(iris: httpx.Client) -> None:
    assert iris.get("/health").json() == {"health": "ok"}


@pytest.mark.parametrize(("path", "field"), [("live", "live"), ("ready", "ready")])
def test_a_running_server_is_live_and_ready(iris: httpx.Client, path: str, field: str) -> None:
    answer = iris.get(f"/v2/health/{path}")

    assert answer.status_code == 200
    assert answer.json() == {field: True}


def test_metadata_has_the_books_fields_from_the_contract(iris: httpx.Client, store: Path) -> None:
    contract = read_contract(store / "iris" / "1")

    about = iris.get("/metadata").json()

    assert about["data_type"] == about["prediction_type"] == "float32"
    assert about["data_structure"] == "(N,4)"
    assert about["prediction_structure"] == "(N,3)"
    assert about["data_sample"] == contract.golden.inputs["input"][:1]
    assert about["sha256"] == contract.model.sha256
    assert about["purpose"] == contract.purpose
    assert [feature["unit"] for feature in about["inputs"][0]["features"]] == ["cm"] * 4


def test_metadata_names_no_library(iris: httpx.Client) -> None:
    """A list of versions is not for the predict port."""
    assert "onnxruntime" not in iris.get("/metadata").text


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_sample_is_predicted_as_metadata_says(client: Client, dataset: str) -> None:
    about = client(dataset).get("/metadata").json()
    posted = client(dataset).post("/predict", json={"data": about["data_sample"]}).json()

    tested = client(dataset).get("/predict/test").json()

    assert tested == posted
    expected = pytest.approx(about["prediction_sample"][0], rel=1e-4, abs=1e-5)
    assert tested["prediction"][0] == expected


def test_labels_are_listed_by_index(client: Client) -> None:
    assert client("iris").get("/label").json() == {
        "0": "setosa",
        "1": "versicolor",
        "2": "virginica",
    }
    assert list(client("digits").get("/label").json().values()) == [str(n) for n in range(10)]


def test_the_sample_is_labelled(client: Client) -> None:
    labels = client("digits").get("/label").json().values()

    (label,) = client("digits").get("/predict/test/label").json()["prediction"]

    assert label in labels


def test_an_unknown_path_is_rejected_in_the_same_form(iris: httpx.Client) -> None:
    for path in ("/nope", "/predict/", "/v2/nope", "/docs/assets/nope.js"):
        answer = iris.get(path)
        assert answer.status_code == 404
        assert answer.json() == {"error": f"{path}: no such path"}


def test_another_method_is_rejected_in_the_same_form(iris: httpx.Client) -> None:
    answer = iris.post("/metadata")

    assert answer.status_code == 405
    assert answer.json() == {"error": "/metadata: expected GET, got POST"}


def test_docs_work_without_internet(iris: httpx.Client) -> None:
    """Everything the page refers to is on this server."""
    page = iris.get("/docs").text

    wanted = re.findall(r"""(?:src|href)=["']([^"']+)|url: ["']([^"']+)""", page)
    addresses = [first or second for first, second in wanted]
    assert len(addresses) == 4
    for address in addresses:
        assert address.startswith("/")
        assert iris.get(address).status_code == 200


def test_the_page_loads_from_this_server_only(
    iris: httpx.Client,
) -> None:
    """Each file has a Content-Security-Policy."""
    page = iris.get("/")

    wanted = re.findall(r"""(?:src|href)="(page/[^"]+)""", page.text)
    assert len(wanted) == 3
    for answer in (page, *(iris.get(f"/{address}") for address in wanted)):
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"].startswith("default-src 'self';")
        assert answer.headers["cache-control"] == "no-store"
    assert {"/", "/page/{name}"}.isdisjoint(iris.get("/openapi.json").json()["paths"])
    assert iris.get("/page/nope.js").json() == {"error": "/page/nope.js: no such path"}


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_hot_endpoints_are_documented_by_the_contract(client: Client, dataset: str) -> None:
    document = client(dataset).get("/openapi.json").json()
    about = client(dataset).get("/metadata").json()
    classifier = bool(about["outputs"][0]["labels"])

    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    rows = content["application/json"]["schema"]["properties"]["data"]
    columns = about["inputs"][0]["shape"][1]
    assert (rows["minItems"], rows["maxItems"]) == (1, 1024)
    assert rows["items"]["minItems"] == rows["items"]["maxItems"] == columns
    example = content["application/json"]["example"]
    assert client(dataset).post("/predict", json=example).status_code == 200
    assert ("/predict/label" in document["paths"]) is classifier
    assert {"/health", "/metadata", "/label", "/predict/test"} <= set(document["paths"])


def metrics(url: str) -> dict[tuple[str, ...], float]:
    """Every sample of a server by name and label values."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize("workers", ["1", "2"])
def test_metrics_count_requests_by_endpoint(server: Start, workers: str) -> None:
    """With several workers, any of them answers for all."""
    url = server(WORKERS=workers).wait_until_ready().url
    for _ in range(20):
        httpx.post(f"{url}/predict", json={"data": ROWS})
    httpx.post(f"{url}/predict", json={"data": []})
    httpx.get(f"{url}/predict/test")
    httpx.get(url)
    httpx.get(f"{url}/page/page.js")
    httpx.get(f"{url}/nope")

    counted = metrics(url)

    assert counted["http_requests_total", "/predict", "2xx"] == 20
    assert counted["http_requests_total", "/predict", "4xx"] == 1
    assert counted["http_requests_total", "/predict/test", "2xx"] == 1
    assert counted["http_requests_total", "/", "2xx"] == 1
    assert counted["http_requests_total", "/page/{name}", "2xx"] == 1
    assert counted["http_requests_total", "other", "4xx"] == 1
    assert counted["http_request_duration_seconds_count", "/predict"] == 21
    assert counted["model_inference_seconds_count",] == 21
    assert counted["model_rows_total",] == 41
    assert counted["model_load_seconds_count",] == int(workers)
    assert 0 < counted["model_load_seconds_sum",] < 10


def test_metrics_name_the_model(server: Start, mode: str, store: Path) -> None:
    contract = read_contract(store / "iris" / "1")
    url = server().wait_until_ready().url

    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)

    (sample,) = [s for family in families for s in family.samples if s.name == "model_info"]
    assert sample.value == 1
    assert sample.labels == {
        "mode": mode,
        "name": "iris",
        "version": "1",
        "sha256": contract.model.sha256,
    }


def test_inventory_is_what_this_process_is(iris: httpx.Client, mode: str, store: Path) -> None:
    contract = read_contract(store / "iris" / "1")

    runs = iris.get("/inventory").json()

    assert runs["mode"] == mode
    assert runs["packages"]["onnxruntime"] == contract.origin.environment.libraries["onnxruntime"]
    assert runs["providers"] == ["CPUExecutionProvider"]
    assert runs["settings"]["max_batch_rows"] == 1024
    assert runs["model"]["version"] == "1"
    assert runs["model"]["sha256"] == contract.model.sha256
    assert runs["model"]["source"] == str(store / "iris" / "1")
    assert runs["model"]["origin"] == contract.origin.model_dump(mode="json")
