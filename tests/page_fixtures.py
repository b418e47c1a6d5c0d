"""The page in Chromium, for the tests of it: a browser, a server with scripted answers, tabs.

`make page-test` installs what these need and runs them, two minutes; CHROMIUM names a browser that
is not on the PATH.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from page_server import Fake, serving

if "PAGE_TEST" not in os.environ:
    pytest.skip("minutes in a browser: `make page-test` runs it", allow_module_level=True)
pytest.importorskip("playwright.sync_api", reason="no Playwright: see `make page-test`")
pytest.importorskip("axe_playwright_python", reason="no axe: see `make page-test`")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

__all__ = ["browser", "fake", "fake_server", "opened", "page"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
if CHROMIUM is None:
    pytest.skip("no Chromium: see `make page-test`", allow_module_level=True)

PHONE = {"width": 375, "height": 740}
WIDE = {"width": 1440, "height": 900}
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def fake_server() -> Iterator[tuple[Fake, str]]:
    fake = Fake()
    with serving(fake.app()) as address:
        yield fake, address


@pytest.fixture
def fake(fake_server: tuple[Fake, str]) -> Fake:
    fake, _ = fake_server
    fake.bodies, fake.refusals, fake.cut = [], [], 0
    fake.health, fake.pause = {"status": "ok"}, 0.0005
    fake.thinking, fake.is_reading = "switch", False
    return fake


@pytest.fixture
def opened(browser: Browser, fake_server: tuple[Fake, str]) -> Iterator[Open]:
    """Opens pages; afterwards: no error in a script, nothing refused by the policy or from outside.

    Pages of one test are tabs of one window, with one storage.
    """
    contexts, wrong = [], []

    def open_page(at: str = fake_server[1], **options: Any) -> Page:
        if not contexts or options:
            contexts.append(browser.new_context(**({"viewport": WIDE} | options)))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console", lambda said: wrong.append(said.text) if "Content Sec" in said.text else None
        )
        page.on(
            "request",
            lambda asked: None if asked.url.startswith((at, "blob:")) else wrong.append(asked.url),
        )
        page.goto(at)
        expect(page.locator("#send")).to_be_enabled()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture
def page(opened: Open, fake: Fake) -> Page:
    return opened()


def send(page: Page, text: str, *, wait: bool = True) -> None:
    page.locator("#message").fill(text)
    page.keyboard.press("Enter")
    if wait:
        expect(page.locator("#send")).to_be_visible()
        expect(page.locator(".message.assistant").last).to_have_attribute("aria-busy", "false")


def answer(page: Page) -> Any:
    return page.locator(".message.assistant").last


def check_axe(page: Page, where: str) -> None:
    page.wait_for_timeout(250)  # transitions
    found = Axe().run(page).response["violations"]
    told = [(one["id"], [n["html"][:200] for n in one["nodes"]]) for one in found]
    assert not told, where
