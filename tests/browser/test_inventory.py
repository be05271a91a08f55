"""The HTML report of `make inventory FORMAT=html`, opened as a file in a real browser."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
from playwright.sync_api import Page, expect

from tests.servers import start

pytestmark = pytest.mark.xdist_group("browser")
ROOT = Path(__file__).parent.parent.parent
CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")


class Report(NamedTuple):
    """The report of two servers."""

    file: Path
    # The server whose model is in the store.
    right_url: str
    # The server whose model is missing in the store.
    wrong_url: str


@pytest.fixture(scope="module")
def report(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("report")
    (folder / "store").mkdir()
    (folder / "store" / "iris").symlink_to(store / "iris")
    with ExitStack() as running:
        urls = [
            running.enter_context(start(mode, store / dataset / "1")).wait_until_ready().url
            for mode, dataset in (("model_in_image", "iris"), ("model_load", "digits"))
        ]
        options = [f"--urls={' '.join(urls)}", f"--store={folder / 'store'}", "--format=html"]
        completed = subprocess.run(
            [sys.executable, "-m", "release", "inventory", *options],
            cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert completed.returncode == 1, completed.stderr
    (folder / "inventory.html").write_text(completed.stdout, encoding="utf-8")
    return Report(folder / "inventory.html", *urls)


def test_disagreement_is_shown_in_the_header_and_at_its_replica(page: Page, report: Report) -> None:
    """The reader sees at once that something is wrong, and where. The file loads nothing else."""
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))

    page.goto(report.file.as_uri())

    expect(page.locator("header .state")).to_have_text("Disagreements: 1")
    expect(page.locator("li.wrong")).to_contain_text(f"{report.wrong_url}: digits/1: ")
    row = page.get_by_role("row").filter(has_text="where")
    expect(row.get_by_role("cell", name=report.wrong_url)).to_have_class("wrong")
    expect(row.get_by_role("cell", name=report.right_url)).not_to_have_class("wrong")
    expect(page.get_by_role("row").filter(has_text="purpose")).to_contain_text("iris")
    assert requests == [report.file.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_report_is_readable_on_narrow_and_wide_screens(
    page: Page, report: Report, width: int, scheme: Literal["light", "dark"]
) -> None:
    """On a narrow screen only the table scrolls, also by keyboard, and its first column stays."""
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(report.file.as_uri())

    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(CONTRAST) == []
    if width == 360:
        header = page.get_by_role("rowheader", name="purpose")
        before = header.bounding_box()
        page.keyboard.press("Tab")
        page.keyboard.press("End")
        page.keyboard.press("ArrowRight")
        page.wait_for_function("document.activeElement.scrollLeft > 0")
        after = header.bounding_box()
        assert before
        assert after
        assert before["x"] == after["x"]
