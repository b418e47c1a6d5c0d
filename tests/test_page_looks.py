"""The page in Chromium: narrow, on paper, from right to left; Markdown; what is told and when."""

from __future__ import annotations

import re
from typing import Any

import pytest
from page_fixtures import (
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
from page_server import Fake, serving
from playwright.sync_api import expect

__all__ = ["browser", "fake", "fake_server", "opened", "page"]

SHOW = """async (text) => {
  const { showMarkdown } = await import("/page/markdown.js");
  const place = document.createElement("div");
  Object.assign(place, { id: "shown", className: "prose" });
  document.querySelector("#messages").append(place);
  showMarkdown(place, text);
}"""


def shown(page: Any, text: str) -> Any:
    """What Markdown becomes."""
    page.evaluate("document.querySelector('#shown')?.remove()")
    page.evaluate(SHOW, text)
    return page.locator("#shown")


# --- what it looks like ---------------------------------------------------------------------------


@pytest.mark.parametrize("width", [320, 375, 640])
def test_narrow_page_is_as_wide_as_its_window_and_words_stay_whole(opened, fake, width):
    page = opened(viewport={"width": width, "height": 640}, has_touch=True, is_mobile=True)
    heads = " | ".join(["expert", "latency", "bandwidth", "capacity", "hits", "position"])
    table = f"| {heads} |\n|{'--|' * 6}\n|{' 1 |' * 6}\n\n{'word ' * 900}"
    send(page, "Hello")
    heading = shown(page, table).locator("th").nth(2)
    assert heading.bounding_box()["height"] < 40  # one line
    assert page.evaluate("document.querySelector('#scroll').scrollWidth") <= width
    page.locator("#scroll").evaluate("place => place.scrollTo(0, 0)")
    latest, composer = page.locator("#to-end"), page.locator("#composer")
    expect(latest).to_be_visible()
    box = latest.bounding_box()
    assert box["y"] + box["height"] <= composer.bounding_box()["y"]
    assert composer.bounding_box()["height"] < 120
    size = "box => parseFloat(getComputedStyle(box).fontSize)"
    assert page.locator("#message").evaluate(size) >= 16  # below it a phone zooms in
    latest.click()
    expect(latest).to_be_hidden()
    expect(page.locator("#scroll")).to_be_focused()
    page.locator("#machine-toggle").click()
    expect(page.locator("#machine")).to_contain_text("11.9 t/s predicted, 10.9 t/s measured")
    body = page.locator("#machine-body")
    assert body.evaluate("place => place.scrollWidth <= place.clientWidth")


def test_printed_page_has_the_whole_conversation_and_nothing_else(opened, fake):
    page = opened(viewport=WIDE, color_scheme="dark")
    for text in ("markdown", "markdown again"):
        send(page, text)
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollHeight") > 1.5 * WIDE["height"]
    for gone in ("#sidebar", "#machine", "#composer"):
        expect(page.locator(gone)).to_be_hidden()
    ink = page.locator(".prose p").first.evaluate("p => getComputedStyle(p).color")
    assert sum(map(int, re.findall(r"\d+", ink)[:3])) < 200  # dark, as paper is white


def test_text_from_right_to_left_begins_at_the_right(page):
    send(page, "שלום עולם")
    direction = "element => getComputedStyle(element).direction"
    assert page.locator(".said").evaluate(direction) == "rtl"
    blocks = shown(page, "hello\n\nمرحبا بالعالم\n\n```\nקוד\n```").locator(".block > *")
    assert [one.evaluate(direction) for one in blocks.all()] == ["ltr", "rtl", "ltr"]


# --- Markdown -------------------------------------------------------------------------------------


def test_formula_without_an_end_is_text_until_it_comes(page):
    place = shown(page, "so\n\n$$\n\\frac{a")
    assert place.locator(".tex").count() == 0
    expect(place).to_contain_text("\\frac{a")
    place = shown(page, "so\n\n$$\n\\frac{a}{b}\n$$\n\nafter")
    assert place.locator(".display .katex").count() == 1
    expect(place.locator("p").last).to_have_text("after")


def test_formulas_between_double_dollars_may_stand_in_a_line(page):
    place = shown(page, "$$x^2$$ is it, $$y$$ too; $5 and $6, or $$ alone")
    assert place.locator(".katex").count() == 2
    expect(place).to_contain_text("$5 and $6, or $$ alone")


def test_link_that_leads_nowhere_is_text(page):
    place = shown(page, "[file](src/main.py) [part](#part) [data](data:text/html,x) README.md")
    assert place.locator("a").count() == 0
    expect(place).to_contain_text("file part [data](data:text/html,x) README.md")


# --- the end of an answer, the machine ------------------------------------------------------------


def test_context_that_is_full_is_told_under_the_answer(page, fake):
    send(page, "full")
    expect(answer(page).locator(".progress")).to_have_text(
        "Ended at the limit of tokens. The answer has filled the context."
    )


@pytest.mark.parametrize("mode", ["none", "always", "switch"])
def test_thinking_is_switched_only_where_the_model_can(opened, fake, mode):
    fake.thinking = mode
    page = opened()
    chip = page.locator("#thinking")
    expect(chip).to_be_visible(visible=mode != "none")
    expect(chip).to_be_enabled(enabled=mode == "switch")
    page.locator("#open-settings").click()
    expect(page.get_by_label("Think first")).to_be_enabled(enabled=mode == "switch")
    page.get_by_label("Thinking budget").fill("100")
    page.get_by_role("button", name="Done").click()
    send(page, "Hello")
    (body,) = fake.bodies
    assert body["chat_template_kwargs"] == ({"thinking": True} if mode == "switch" else {})
    assert body.get("thinking_budget") == (None if mode == "none" else 100)


def test_figures_of_a_server_that_is_gone_are_not_shown_as_now(opened):
    with serving(Fake().app()) as address:
        page = opened(address)
        expect(page.locator("#machine-label")).to_contain_text("t/s")
        expect(page.locator("#machine-toggle")).to_have_accessible_name(
            re.compile(r"Machine: [\d.]+ t/s")
        )
        assert page.locator(".is-stale").count() == 0
    expect(page.locator("#machine-body")).to_have_class(re.compile("is-stale"))
    expect(page.locator("#banner")).to_contain_text("does not answer", timeout=4000)
    expect(page.locator("#machine")).to_contain_text("Below is what it told last.")
    check_axe(page, "gone")
    expect(page.locator("#machine-label")).to_have_text("Machine")


def test_bytes_are_measured_only_where_no_prompt_is_read(opened, fake):
    fake.is_reading = True
    page = opened()
    measured = page.locator("#machine table").first.locator("tr").nth(1).locator("td").nth(1)
    page.wait_for_timeout(2500)
    expect(measured).to_have_text("–")
    fake.is_reading = False
    expect(measured).to_have_text("8.9 GB")


def test_rows_of_the_machine_that_stay_the_same_stay_selected(page):
    memory = page.locator("#machine tr", has_text="Available on the machine")
    memory.evaluate("row => (row.mark = 1)")
    page.wait_for_timeout(2200)
    assert memory.evaluate("row => row.mark") == 1


def test_hidden_page_asks_nothing(opened, fake):
    page = opened()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    fake.health = {"status": "loading model"}  # is looked at twice a second
    page.reload()
    expect(page.locator("#banner")).to_be_visible()
    page.evaluate(
        """Object.defineProperty(document, "hidden", { get: () => true });
           document.dispatchEvent(new Event("visibilitychange"))"""
    )
    page.wait_for_timeout(700)
    asked.clear()
    page.wait_for_timeout(2000)
    assert not asked


def test_end_stays_in_view_when_the_room_for_it_shrinks(opened, fake):
    page = opened(viewport={"width": 375, "height": 740})
    send(page, "markdown")
    expect(page.locator(".message-foot").last).to_be_in_viewport()
    page.set_viewport_size({"width": 375, "height": 400})  # a keyboard
    expect(page.locator(".message-foot").last).to_be_in_viewport()
    page.locator("#message").fill("a\n" * 12)
    expect(page.locator(".message-foot").last).to_be_in_viewport()


def test_growing_list_keeps_the_items_that_it_has(page):
    text = "3. **one**\n4. two\n   - inner\n"
    place = shown(page, text)
    place.evaluate("place => (place.querySelector('li').mark = 1)")
    grow = """async (text) => {
      const { showMarkdown } = await import("/page/markdown.js");
      showMarkdown(document.querySelector("#shown"), text);
      return document.querySelector("#shown li").mark;
    }"""
    assert page.evaluate(grow, text + "5. three `x` $y$\n") == 1
    assert place.locator("ol").get_attribute("start") == "3"
    assert [one.inner_text() for one in place.locator("ol > li").all()][:2] == ["one", "two\ninner"]
    assert place.locator("ol > li:last-child .katex").count() == 1
    assert page.evaluate(grow, text + "\n5. loose\n") is None
    assert place.locator("ol > li > p").count() == 3
    page.evaluate(grow, "- other\n")
    assert place.locator("ul > li").all_inner_texts() == ["other"]
    assert place.locator("ol").count() == 0
