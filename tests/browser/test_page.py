"""The page at / as a person has it: in a real browser, of real servers in both modes."""

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
LOOK_MILLISECONDS = 5000
Running = dict[str, ServerProcess]


def values_of(page: Page) -> list[str]:
    """What stands in the fields."""
    return [field.input_value() for field in page.locator("#fields input").all()]


def predicted(page: Page) -> list[float]:
    """The values of the prediction that is shown, in its order."""
    shown = page.locator("#prediction data")
    shown.first.wait_for(state="attached")
    return [float(str(one.get_attribute("value"))) for one in shown.all()]


def replace_by_keyboard(page: Page, text: str) -> None:
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type(text)


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_form_predicts_what_the_server_does(page: Page, running: Running, dataset: str) -> None:
    """Fields made of the contract, the sample in them, one changed, Enter."""
    url = running[dataset].url
    about = httpx.get(f"{url}/metadata").json()
    features, (row,) = about["inputs"][0]["features"], about["data_sample"]
    page.goto(url)
    field = page.get_by_label(features[2]["name"])
    expect(field).to_have_value(f"{row[2]:g}")
    assert [float(value) for value in values_of(page)] == row

    field.focus()
    replace_by_keyboard(page, "3.25")
    page.keyboard.press("Enter")

    row[2] = 3.25
    expected = httpx.post(f"{url}/predict", json={"data": [row]}).json()["prediction"][0]
    labels = about["outputs"][0]["labels"]
    if labels:
        expected, labels = zip(
            *sorted(zip(expected, labels, strict=True), reverse=True), strict=True
        )
        expect(page.locator("#prediction li").first).to_contain_text(f"{100 * expected[0]:.1f} %")
    assert predicted(page) == pytest.approx(expected, rel=1e-6)
    assert page.locator('#prediction [data-of="label"]').all_text_contents() == list(labels)
    expect(page.locator("#prediction")).to_contain_text(f"by {dataset}, version 1")


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_page_says_what_the_model_is(page: Page, running: Running, dataset: str) -> None:
    about = httpx.get(f"{running[dataset].url}/metadata").json()

    page.goto(running[dataset].url)

    expect(page.get_by_role("heading", level=1)).to_have_text(dataset)
    expect(page.locator("header")).to_contain_text("version 1")
    expect(page.locator("header")).to_contain_text(about["purpose"])
    expect(page.locator("#health")).to_have_text("Ready")
    expect(page.locator("#about")).to_contain_text(about["sha256"])
    expect(page.locator("#about")).to_contain_text(about["owner"])
    for feature in about["inputs"][0]["features"]:
        (field,) = page.get_by_label(feature["name"], exact=False).all()[:1]
        expect(field).to_have_accessible_description(
            f"{feature['minimum']:g} to {feature['maximum']:g} in training"
        )


def test_all_is_reached_by_keyboard_and_seen_where_it_is(page: Page, running: Running) -> None:
    page.goto(running["iris"].url)
    page.locator("#fields input").first.wait_for()
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        assert focused.evaluate("(one) => getComputedStyle(one).outlineStyle") == "solid"
        name = focused.evaluate("(one) => (one.labels?.[0] ?? one).textContent")
        reached.append(" ".join(name.split()))

    assert reached == [
        *("API documentation", "sepal length cm", "sepal width cm", "petal length cm"),
        *("petal width cm", "Predict", "Back to the sample", page.locator("#curl").inner_text()),
        "Copy",
    ]


def test_a_value_that_training_never_saw_is_marked_and_allowed(
    page: Page, running: Running
) -> None:
    page.goto(running["iris"].url)
    field = page.get_by_label("petal width")

    field.fill("7")
    field.press("Enter")

    expect(field).to_have_accessible_description("training saw only 0.1 to 2.5")
    expect(page.locator("#outside")).to_have_text("Outside what training saw: petal width")
    assert sum(predicted(page)) == pytest.approx(1)
    page.get_by_role("button", name="Back to the sample").click()
    expect(field).to_have_value("0.2")
    expect(page.locator("#outside")).to_be_hidden()
    expect(page.locator("#prediction")).to_contain_text("not of the values")


def test_the_servers_error_is_shown_at_its_field(page: Page, running: Running) -> None:
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


def test_a_server_that_is_gone_is_said(page: Page, server: Start) -> None:
    one = server().wait_until_ready()
    page.clock.install()
    page.goto(one.url)
    expect(page.locator("#health")).to_have_text("Ready")

    one.stop()
    page.get_by_label("sepal width").press("Enter")
    page.clock.run_for(LOOK_MILLISECONDS)

    expect(page.get_by_role("alert")).to_have_text("The server does not answer.")
    expect(page.locator("#health")).to_have_text("Not ready")
    expect(page.locator("#trouble")).to_contain_text("The server does not answer.")


def test_a_model_of_several_inputs_is_asked_in_the_protocol(
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

    shown = page.locator("#prediction pre")
    expect(shown).to_contain_text("from the page")
    assert json.loads(str(shown.text_content())) == (
        httpx.post(f"{url}/v2/models/pairs/infer", json=body).json()
    )
    field.fill("{")
    field.press("Control+Enter")
    expect(page.get_by_role("alert")).to_contain_text("body: ")


def answer_of_the_command(page: Page) -> Any:
    """What the command answers that the page shows, run by a shell."""
    command = str(page.locator("#curl").text_content())
    ran = subprocess.run(["bash", "-c", command], capture_output=True, check=True, text=True)
    return json.loads(ran.stdout)


def test_the_command_shown_asks_the_same(page: Page, running: Running) -> None:
    page.goto(running["iris"].url)
    page.get_by_label("petal length").fill("4.75")
    page.keyboard.press("Enter")

    (row,) = answer_of_the_command(page)["prediction"]

    assert sorted(row, reverse=True) == predicted(page)
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#copied")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("#curl").text_content()


def test_the_command_shown_leaves_nothing_to_the_shell(
    page: Page, server: Start, own_store: Path, tmp_path: Path
) -> None:
    """Nor to curl, to which what begins with @ may be the name of a file."""
    page.goto(server(own_store / "words" / "1").wait_until_ready().url)
    field = page.get_by_label("Request in the Open Inference Protocol")
    expect(field).to_have_value(re.compile('"text"'))
    body = json.loads(field.input_value())
    words = ["it's $HOME `id` \\ !! \"", "@/etc/hostname\n'"]
    body["inputs"][0]["data"] = words

    field.fill(json.dumps(body))

    assert answer_of_the_command(page)["outputs"][0]["data"] == words
    (tmp_path / "request").write_text(json.dumps(body))
    field.fill(f"@{tmp_path / 'request'}")
    assert "error" in answer_of_the_command(page)


def test_nothing_is_asked_of_anybody_else(page: Page, running: Running) -> None:
    """And nothing that the page does is against the policy that it came with."""
    url, asked, said = running["digits"].url, [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))

    policy = page.goto(url).headers["content-security-policy"]  # type: ignore[union-attr]
    page.get_by_label("pixel_0_0").press("Enter")
    predicted(page)

    assert policy.startswith("default-src 'self';")
    assert {request.removeprefix(url) for request in asked} >= {"/", "/page/page.js", "/predict"}
    assert [request for request in asked if not request.startswith(f"{url}/")] == []
    assert said == []


def test_the_words_of_a_contract_are_text(page: Page, artifact: Path, server: Start) -> None:
    """Somebody else wrote them."""
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
    shown = page.locator('#prediction [data-of="label"]').all_text_contents()
    assert sorted(shown) == sorted(fields["outputs"][0]["labels"])
    assert page.locator("img, b").count() == 0
    assert page.title() == "iris 1"


def test_what_is_no_number_is_said(page: Page, tmp_path: Path) -> None:
    """Scores are no percentages, and features without names have a number."""
    save(
        tmp_path / "logarithms.onnx",
        [("x", FLOAT, ["N", 3])],
        [("y", FLOAT, ["N", 3])],
        [("Log", ["x"], ["y"])],
    )
    made = make_contract(
        onnx_file=tmp_path / "logarithms.onnx", name="logarithms", version="1",
        store=tmp_path / "store", purpose="a test", labels="a,b,c",
    )  # fmt: skip
    with start("model_in_image", made) as server:
        page.goto(server.wait_until_ready().url)
        for index, value in enumerate(("-1", "2", "8")):
            page.get_by_label(f"x[{index}]").fill(value)
        page.keyboard.press("Enter")

        bars = page.locator("#prediction li")
        expect(bars).to_have_text([r"c 2.07944", r"b 0.693147", r"a not a number"])


def test_another_version_and_what_is_wrong_are_seen_without_loading_the_page_again(
    page: Page, two_csv_versions: Path, tmp_path: Path
) -> None:
    """Of a server that follows an alias."""
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
        wait_until(lambda: metadata(url)["version"] == "2")
        page.clock.run_for(LOOK_MILLISECONDS)
        expect(page.locator("#version")).to_have_text("version 2")
        expect(field).to_have_value("6")
        expect(page.locator("#prediction")).to_contain_text(
            "not of the values that are in the form"
        )

        alias.write_text("3")
        wait_until(lambda: metadata(url)["degraded"] is not None)
        why = metadata(url)["degraded"]
        page.clock.run_for(LOOK_MILLISECONDS)
        expect(page.locator("#health")).to_have_text("Degraded")
        expect(page.locator("#trouble")).to_have_text(f"Still version 2: {why}")


def metadata(url: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{url}/metadata").json()
    return answer


@pytest.mark.parametrize("dataset", DATASETS)
def test_all_can_be_read(page: Page, running: Running, dataset: str) -> None:
    """On a phone and a desk, by day and by night: the contrast of WCAG's AA, no way sideways."""
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
