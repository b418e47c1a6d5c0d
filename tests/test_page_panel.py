"""The page in Chromium: the machine's panel, what axe finds, and the whole way to kimi-mini."""

from __future__ import annotations

import re

import pytest
from page_fixtures import (
    PHONE,
    WIDE,
    answer,
    browser,
    check_axe,
    fake,
    fake_server,
    opened,
    page,
    send,
)
from page_server import serving
from playwright.sync_api import expect

__all__ = ["browser", "fake", "fake_server", "opened", "page"]


def test_machine_panel_shows_tiers_experts_slots_and_the_plan(page):
    panel = page.locator("#machine")
    expect(panel).to_contain_text("RAM slots")
    expect(panel).to_contain_text("11.9 t/s predicted, 10.9 t/s measured")
    expect(panel).to_contain_text("waits, no. 1")
    expect(panel).to_contain_text("Bars: share found in VRAM.")
    expect(panel).to_contain_text(re.compile(r"\d+ % of those asked for lay in VRAM\."))
    expect(panel).to_contain_text("no packed layout for IQ2_XXS")
    expect(panel.locator("canvas")).to_have_attribute("aria-label", re.compile("60 layers of 384"))
    expect(page.locator("#machine-label")).to_have_text(re.compile(r"t/s, 1 waiting"))
    panel.get_by_role("button", name="As a table").click()
    expect(panel.locator(".table-place tbody tr")).to_have_count(60)
    colours = panel.locator("canvas").evaluate(
        """c => new Set(Array.from(new Uint32Array(
             c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer))).size"""
    )
    assert colours > 40


def test_panel_covers_nothing_of_the_chat_in_a_window_of_middle_width(opened, fake):
    page = opened(viewport={"width": 900, "height": 700})
    expect(page.locator("#sidebar")).to_be_in_viewport()
    page.locator("#machine-toggle").click()
    panel, send_button = page.locator("#machine"), page.locator("#send")
    right = send_button.bounding_box()["x"] + send_button.bounding_box()["width"]
    assert right < panel.bounding_box()["x"]
    page.set_viewport_size({"width": 770, "height": 700})
    assert page.locator("#composer").bounding_box()["height"] < 120
    expect(page.locator("#sidebar")).not_to_be_in_viewport()
    page.locator("#open-sidebar").click()
    expect(page.locator("#new")).to_be_focused()
    check_axe(page, "list over the chat")
    page.keyboard.press("Escape")
    expect(page.locator("#sidebar")).not_to_be_in_viewport()
    page.set_viewport_size(WIDE)
    expect(page.locator("#sidebar")).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_hidden_panel_asks_for_nothing(page):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(1500)
    assert any("/machine" in url for url in asked)
    page.locator("#machine-toggle").click()
    page.wait_for_timeout(300)
    asked.clear()
    page.wait_for_timeout(1500)
    assert not any("/machine" in url for url in asked)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_axe_finds_nothing(opened, fake, scheme, size):
    page = opened(viewport=size, color_scheme=scheme)
    send(page, "markdown")
    send(page, "weather")
    send(page, "break")
    check_axe(page, "chat")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if size == PHONE:
        page.locator("#machine-toggle").click()
    page.get_by_role("button", name="As a table").click()
    page.locator("#machine summary").click()
    check_axe(page, "machine")
    page.get_by_role("button", name="Enlarge").click()
    check_axe(page, "map")
    page.keyboard.press("Escape")
    if size == PHONE:
        page.locator("#close-machine").click()
        page.locator("#open-sidebar").click()
        check_axe(page, "sidebar")
    page.locator("#open-settings").click()
    check_axe(page, "settings")


def test_theme_switch_stays(page):
    def ground() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = ground()
    page.locator("#theme").click()
    page.locator("#theme").click()
    assert ground() != light
    page.reload()
    expect(page.locator("#theme")).to_have_attribute("aria-label", "Theme: dark")
    assert ground() != light


# --- the whole way --------------------------------------------------------------------------------


def test_kimi_mini_answers_through_the_real_server(opened):
    import offload
    from offload.server.app import make_app
    from offload.server.desk import Desk
    from offload.server.host import Host
    from offload.server.security import Rules

    host = Host("kimi-mini", parallel=2, queue=4)
    with offload.load(kv_tokens=4096) as engine:
        host._desk = Desk(engine, parallel=2, queue=4)
        with serving(make_app(host, Rules())) as address:
            page = opened(address)
            send(page, "What is a routed expert?")
            expect(answer(page).locator(".figures")).to_contain_text("t/s")
            assert len(answer(page).locator("> .prose").inner_text()) > 10
            expect(page.locator("#model-name")).to_have_text("kimi-mini")
            expect(page.locator("#machine")).to_contain_text("measured of an answer of")
            expect(page.locator("#machine canvas")).to_have_attribute(
                "aria-label", re.compile("3 layers of 64 experts")
            )
        host.desk.close()
