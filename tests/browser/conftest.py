"""Fixtures: a headless Chromium, and a fresh page in it for each test."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.fakes import unavailable

# Chromium's sandbox needs privileges that containers seldom have, and the tests open only pages of
# this project. The other arguments switch off background work, for example update checks.
_ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
_TIMEOUT_MILLISECONDS = 10_000


# Not session-scoped: while playwright runs, this thread has a running event loop, so tests of other
# modules could not call asyncio.run().
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start Chromium with a fresh profile."""
    program = shutil.which("chromium")
    if program is None:
        unavailable("needs chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*_ARGUMENTS])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Open an empty page in a fresh context. An exception in a script fails the test."""
    errors: list[str] = []
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    context.set_default_timeout(_TIMEOUT_MILLISECONDS)
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []
