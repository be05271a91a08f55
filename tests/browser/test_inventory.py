"""`make inventory FORMAT=html` as a person has it: a file, in a real browser."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Page, expect

from tests.servers import start

pytestmark = pytest.mark.xdist_group("browser")
ROOT = Path(__file__).parent.parent.parent
CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def kept(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The record of two servers as a file; that of the first, and of the other, which is amiss."""
    folder = tmp_path_factory.mktemp("record")
    (folder / "store").mkdir()
    (folder / "store" / "iris").symlink_to(store / "iris")
    with ExitStack() as running:
        urls = [
            running.enter_context(start(mode, store / dataset / "1")).wait_until_ready().url
            for mode, dataset in (("model_in_image", "iris"), ("model_load", "digits"))
        ]
        options = [f"--urls={' '.join(urls)}", f"--store={folder / 'store'}", "--format=html"]
        made = subprocess.run(
            [sys.executable, "-m", "release", "inventory", *options],
            cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert made.returncode == 1, made.stderr
    (folder / "inventory.html").write_text(made.stdout, encoding="utf-8")
    return folder / "inventory.html", urls[0], urls[1]


def test_what_does_not_agree_is_seen_at_once_and_where(
    page: Page, kept: tuple[Path, str, str]
) -> None:
    file, agreeing, other = kept
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))

    page.goto(file.as_uri())

    expect(page.locator("header .state")).to_have_text("1 not in agreement")
    expect(page.locator("li.wrong")).to_contain_text(f"{other}: digits/1: ")
    row = page.get_by_role("row").filter(has_text="where")
    expect(row.get_by_role("cell", name=other)).to_have_class("wrong")
    expect(row.get_by_role("cell", name=agreeing)).not_to_have_class("wrong")
    expect(page.get_by_role("row").filter(has_text="purpose")).to_contain_text("iris")
    assert asked == [file.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_it_can_be_read(
    page: Page, kept: tuple[Path, str, str], width: int, scheme: Literal["light", "dark"]
) -> None:
    """On a narrow screen the table scrolls by itself, also by keyboard, and its facts stay."""
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(kept[0].as_uri())

    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(CONTRAST) == []
    if width == 360:
        fact = page.get_by_role("rowheader", name="purpose")
        before = fact.bounding_box()
        page.keyboard.press("Tab")
        page.keyboard.press("End")
        page.keyboard.press("ArrowRight")
        page.wait_for_function("document.activeElement.scrollLeft > 0")
        after = fact.bounding_box()
        assert before
        assert after
        assert before["x"] == after["x"]
