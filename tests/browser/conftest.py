"""A real Chromium without a window, and one page in it for each test."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.fakes import unavailable

# The sandbox needs rights that containers seldom have, and it opens nothing but our own pages.
# The rest is what it would do on its own: ask its maker for news, warm up what is never used.
_ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
_PATIENCE_MILLISECONDS = 10_000


# Not for the session: as long as it is there, this thread has an event loop, and tests that
# call asyncio.run() could not.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium with a fresh profile."""
    program = shutil.which("chromium")
    if program is None:
        unavailable("needs chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*_ARGUMENTS])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page that remembers nothing; what its scripts throw fails the test."""
    thrown: list[str] = []
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    context.set_default_timeout(_PATIENCE_MILLISECONDS)
    page = context.new_page()
    page.on("pageerror", lambda error: thrown.append(str(error)))
    yield page
    context.close()
    assert thrown == []
