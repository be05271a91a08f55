"""The page at /, in a real browser, served by real servers in both modes."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from playwright.sync_api import Page, expect

from artifact.contract import read_contract
from release.local.server_process import ServerProcess
from tests.onnx_files import FLOAT, save
from tests.servers import DATASETS, Start, start, wait_until
from training.import_onnx import make_contract

pytestmark = pytest.mark.xdist_group("browser")
CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
POLL_MILLISECONDS = 5000
Running = dict[str, ServerProcess]


def values_of(page: Page) -> list[str]:
    """Return the values in the form."""
    return [field.input_value() for field in page.locator("#fields input").all()]


def predicted(page: Page) -> list[float]:
    """Return the values of the prediction in the order of the page."""
    values = page.locator("#prediction data")
    values.first.wait_for(state="attached")
    return [float(str(value.get_attribute("value"))) for value in values.all()]


def replace_by_keyboard(page: Page, text: str) -> None:
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type(text)


@pytest.mark.parametrize("dataset", DATASETS)
def test_form_shows_the_same_prediction_as_the_api(
    page: Page, running: Running, dataset: str
) -> None:
    """The fields come from the contract and start with its sample. Enter sends the request."""
    url = running[dataset].url
    metadata = get_metadata(url)
    features, (row,) = metadata["inputs"][0]["features"], metadata["data_sample"]
    page.goto(url)
    field = page.get_by_label(features[2]["name"])
    expect(field).to_have_value(f"{row[2]:g}")
    assert [float(value) for value in values_of(page)] == row

    field.focus()
    replace_by_keyboard(page, "3.25")
    page.keyboard.press("Enter")

    row[2] = 3.25
    expected = httpx.post(f"{url}/predict", json={"data": [row]}).json()["prediction"][0]
    labels = metadata["outputs"][0]["labels"]
    if labels:
        expected, labels = zip(
            *sorted(zip(expected, labels, strict=True), reverse=True), strict=True
        )
        expect(page.locator("#prediction li").first).to_contain_text(f"{100 * expected[0]:.1f} %")
    assert predicted(page) == pytest.approx(expected, rel=1e-6)
    assert page.locator('#prediction [data-of="label"]').all_text_contents() == list(labels)
    expect(page.locator("#prediction")).to_contain_text(f"by {dataset}, version 1")


@pytest.mark.parametrize("dataset", DATASETS)
def test_page_describes_the_model(page: Page, running: Running, dataset: str) -> None:
    metadata = get_metadata(running[dataset].url)

    page.goto(running[dataset].url)

    expect(page.get_by_role("heading", level=1)).to_have_text(dataset)
    expect(page.locator("header")).to_contain_text("version 1")
    expect(page.locator("header")).to_contain_text(metadata["purpose"])
    expect(page.locator("#health")).to_have_text("Ready")
    expect(page.locator("#about")).to_contain_text(metadata["sha256"])
    expect(page.locator("#about")).to_contain_text(metadata["owner"])
    for feature in metadata["inputs"][0]["features"]:
        (field,) = page.get_by_label(feature["name"], exact=False).all()[:1]
        expect(field).to_have_accessible_description(
            f"{feature['minimum']:g} to {feature['maximum']:g} in training"
        )


def test_every_control_is_reachable_by_keyboard_with_visible_focus(
    page: Page, running: Running
) -> None:
    page.goto(running["iris"].url)
    page.locator("#fields input").first.wait_for()
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        assert focused.evaluate("(element) => getComputedStyle(element).outlineStyle") == "solid"
        name = focused.evaluate("(element) => (element.labels?.[0] ?? element).textContent")
        reached.append(" ".join(name.split()))

    assert reached == [
        *("API documentation", "sepal length cm", "sepal width cm", "petal length cm"),
        *("petal width cm", "Predict", "Reset to sample", page.locator("#curl").inner_text()),
        "Copy",
    ]


def test_value_outside_the_training_range_is_marked_and_allowed(
    page: Page, running: Running
) -> None:
    page.goto(running["iris"].url)
    field = page.get_by_label("petal width")

    field.fill("7")
    field.press("Enter")

    expect(field).to_have_accessible_description("outside 0.1 to 2.5, the range in training")
    expect(page.locator("#outside")).to_have_text("Outside the range in training: petal width")
    assert sum(predicted(page)) == pytest.approx(1)
    page.get_by_role("button", name="Reset to sample").click()
    expect(field).to_have_value("0.2")
    expect(page.locator("#outside")).to_be_hidden()
    expect(page.locator("#prediction")).to_contain_text("the form has changed since")


def test_error_of_the_server_marks_the_field_that_caused_it(page: Page, running: Running) -> None:
    url = running["iris"].url
    body = '{"data": [[5.1, 1e39, 1.5, 0.2]]}'
    error = httpx.post(f"{url}/predict", content=body).json()["error"]
    page.goto(url)
    field = page.get_by_label("sepal width")

    field.fill("1e39")
    field.press("Enter")

    expect(page.get_by_role("alert")).to_have_text(error)
    expect(field).to_have_attribute("aria-invalid", "true")
    field.fill("3.5")
    field.press("Enter")
    assert len(predicted(page)) == 3
    expect(page.get_by_role("alert")).to_be_hidden()


def test_page_reports_a_server_that_stopped(page: Page, server: Start) -> None:
    process = server().wait_until_ready()
    page.clock.install()
    page.goto(process.url)
    expect(page.locator("#health")).to_have_text("Ready")

    process.stop()
    page.get_by_label("sepal width").press("Enter")
    page.clock.run_for(POLL_MILLISECONDS)

    expect(page.get_by_role("alert")).to_have_text("The server does not respond.")
    expect(page.locator("#health")).to_have_text("Not ready")
    expect(page.locator("#problem")).to_contain_text("The server does not respond.")


def test_model_with_several_inputs_gets_a_json_form(
    page: Page, server: Start, own_store: Path
) -> None:
    url = server(own_store / "pairs" / "1").wait_until_ready().url
    page.goto(url)
    field = page.get_by_label("Request in the Open Inference Protocol")
    expect(field).to_have_value(re.compile('"left"'))
    body = json.loads(field.input_value())
    body["inputs"][0]["data"] = [1.5] * len(body["inputs"][0]["data"])
    body["id"] = "from the page"

    field.fill(json.dumps(body))
    field.press("Control+Enter")

    response = page.locator("#prediction pre")
    expect(response).to_contain_text("from the page")
    assert json.loads(str(response.text_content())) == (
        httpx.post(f"{url}/v2/models/pairs/infer", json=body).json()
    )
    field.fill("{")
    field.press("Control+Enter")
    expect(page.get_by_role("alert")).to_contain_text("body: ")


def run_shown_command(page: Page) -> Any:
    """Run the curl command that the page shows in a shell, and return its JSON output."""
    command = str(page.locator("#curl").text_content())
    completed = subprocess.run(["bash", "-c", command], capture_output=True, check=True, text=True)
    return json.loads(completed.stdout)


def test_shown_curl_command_sends_the_same_request(page: Page, running: Running) -> None:
    page.goto(running["iris"].url)
    page.get_by_label("petal length").fill("4.75")
    page.keyboard.press("Enter")

    (row,) = run_shown_command(page)["prediction"]

    assert sorted(row, reverse=True) == predicted(page)
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#copied")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("#curl").text_content()


def test_shown_curl_command_is_quoted_for_the_shell(
    page: Page, server: Start, own_store: Path, tmp_path: Path
) -> None:
    """It is also safe from curl itself, which can read a body that begins with @ from a file."""
    page.goto(server(own_store / "words" / "1").wait_until_ready().url)
    field = page.get_by_label("Request in the Open Inference Protocol")
    expect(field).to_have_value(re.compile('"text"'))
    body = json.loads(field.input_value())
    words = ["it's $HOME `id` \\ !! \"", "@/etc/hostname\n'"]
    body["inputs"][0]["data"] = words

    field.fill(json.dumps(body))

    assert run_shown_command(page)["outputs"][0]["data"] == words
    (tmp_path / "request").write_text(json.dumps(body))
    field.fill(f"@{tmp_path / 'request'}")
    assert "error" in run_shown_command(page)


def test_page_sends_requests_only_to_its_own_server(page: Page, running: Running) -> None:
    """Nothing on the page violates its content security policy, which would be on the console."""
    url, requests, messages = running["digits"].url, [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text))

    policy = page.goto(url).headers["content-security-policy"]  # type: ignore[union-attr]
    page.get_by_label("pixel_0_0").press("Enter")
    predicted(page)

    assert policy.startswith("default-src 'self';")
    assert {request.removeprefix(url) for request in requests} >= {"/", "/page/page.js", "/predict"}
    assert [request for request in requests if not request.startswith(f"{url}/")] == []
    assert messages == []


def test_markup_in_a_contract_is_shown_as_text(page: Page, artifact: Path, server: Start) -> None:
    """A contract may come from an untrusted author."""
    hostile = "<img src=x onerror=\"document.title='taken'\">"
    contract = read_contract(artifact)
    fields = contract.model_dump(mode="json")
    fields |= {"purpose": hostile, "owner": hostile}
    fields["outputs"][0]["labels"] = ["a \"quoted\" 'label'", "</li><b>bold</b>", hostile]
    fields["inputs"][0]["features"][0] |= {"name": hostile, "unit": hostile}
    (artifact / "contract.json").write_text(json.dumps(fields))

    page.goto(server(artifact).wait_until_ready().url)
    page.get_by_label("sepal width").press("Enter")

    assert len(predicted(page)) == 3
    expect(page.locator("#purpose")).to_have_text(hostile)
    assert page.locator("#fields label").first.text_content() == f"{hostile} {hostile}"
    labels = page.locator('#prediction [data-of="label"]').all_text_contents()
    assert sorted(labels) == sorted(fields["outputs"][0]["labels"])
    assert page.locator("img, b").count() == 0
    assert page.title() == "iris 1"


def test_nan_is_shown_as_not_a_number(page: Page, tmp_path: Path) -> None:
    """Scores are not shown as percentages, and features without names are numbered."""
    save(
        tmp_path / "logarithms.onnx",
        [("x", FLOAT, ["N", 3])],
        [("y", FLOAT, ["N", 3])],
        [("Log", ["x"], ["y"])],
    )
    artifact = make_contract(
        onnx_file=tmp_path / "logarithms.onnx", name="logarithms", version="1",
        store=tmp_path / "store", purpose="a test", labels="a,b,c",
    )  # fmt: skip
    with start("model_in_image", artifact) as server:
        page.goto(server.wait_until_ready().url)
        for index, value in enumerate(("-1", "2", "8")):
            page.get_by_label(f"x[{index}]").fill(value)
        page.keyboard.press("Enter")

        bars = page.locator("#prediction li")
        expect(bars).to_have_text([r"c 2.07944", r"b 0.693147", r"a not a number"])


def test_page_shows_a_new_version_and_a_failed_reload_without_being_reloaded(
    page: Page, two_csv_versions: Path, tmp_path: Path
) -> None:
    """The server polls an alias."""
    store = Path(shutil.copytree(two_csv_versions, tmp_path / "store"))
    alias = store / "flowers" / "aliases" / "stable"
    alias.parent.mkdir()
    alias.write_text("1")
    page.clock.install()
    with start("model_load", store / "flowers@stable", MODEL_POLL_SECONDS="1") as server:
        url = server.wait_until_ready().url
        page.goto(url)
        field = page.get_by_label("sepal length")
        field.fill("6")
        field.press("Enter")
        expect(page.locator("#prediction")).to_contain_text("by flowers, version 1")

        alias.write_text("2")
        wait_until(lambda: get_metadata(url)["version"] == "2")
        page.clock.run_for(POLL_MILLISECONDS)
        expect(page.locator("#version")).to_have_text("version 2")
        expect(field).to_have_value("6")
        expect(page.locator("#prediction")).to_contain_text("the form has changed since")

        alias.write_text("3")
        wait_until(lambda: get_metadata(url)["degraded"] is not None)
        reason = get_metadata(url)["degraded"]
        page.clock.run_for(POLL_MILLISECONDS)
        expect(page.locator("#health")).to_have_text("Degraded")
        expect(page.locator("#problem")).to_have_text(f"Still serving version 2: {reason}")


def get_metadata(url: str) -> dict[str, Any]:
    metadata: dict[str, Any] = httpx.get(f"{url}/metadata").json()
    return metadata


@pytest.mark.parametrize("dataset", DATASETS)
def test_page_is_readable_on_narrow_and_wide_screens(
    page: Page, running: Running, dataset: str
) -> None:
    """Also in light and dark mode: contrast of WCAG's level AA, and no horizontal scrolling."""
    page.goto(running[dataset].url)
    field = page.locator("#fields input").nth(1)
    field.fill("1000")
    field.press("Enter")
    predicted(page)

    for width in (360, 1400):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(CONTRAST) == []
