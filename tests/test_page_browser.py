"""The page in Chromium, against a server with scripted answers, and once against kimi-mini.

`make page-test` installs what this needs and runs it, a minute; CHROMIUM names a browser that is
not on the PATH.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from page_server import Fake, serving
from starlette.responses import JSONResponse

if "PAGE_TEST" not in os.environ:
    pytest.skip("a minute in a browser: `make page-test` runs it", allow_module_level=True)
pytest.importorskip("playwright.sync_api", reason="no Playwright: see `make page-test`")
pytest.importorskip("axe_playwright_python", reason="no axe: see `make page-test`")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: see `make page-test`")

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


# --- chat -----------------------------------------------------------------------------------------


def test_answer_streams_with_its_thinking_folded_and_its_figures(page, fake):
    send(page, "Hello")
    expect(answer(page).locator("> .prose")).to_have_text("You said: Hello.")
    thinking = answer(page).locator("details")
    expect(thinking.locator("summary")).to_have_text("Thought · 42 tokens")
    expect(thinking.locator(".prose")).not_to_be_visible()
    thinking.locator("summary").click()
    expect(thinking.locator(".prose")).to_contain_text("compare tiers by latency")
    expect(answer(page).locator(".figures")).to_contain_text("10.9 t/s · prompt 1,204, 1,180 known")
    (body,) = fake.bodies
    assert body["messages"] == [{"role": "user", "content": "Hello"}]
    assert body["chat_template_kwargs"] == {"thinking": True}
    assert body["stream_options"] == {"include_usage": True}
    send(page, "And now")
    assert [message["role"] for message in fake.bodies[1]["messages"]] == [
        "user", "assistant", "user",
    ]  # fmt: skip
    assert fake.bodies[1]["messages"][1]["reasoning_content"].startswith("The user asks")


def test_queue_is_shown_text_grows_and_escape_stops_it(page, fake):
    fake.pause = 0.01
    send(page, "long one", wait=False)
    expect(answer(page)).to_contain_text("queue, position 2")
    expect(answer(page).locator("summary")).to_contain_text(re.compile(r"Thinking · \d+ tokens"))
    expect(answer(page).locator("> .prose")).to_contain_text("word word")
    expect(answer(page).locator(".figures")).to_have_text(re.compile(r"\d+ tokens · [\d.]+ t/s"))
    expect(page.locator("#send")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(answer(page)).to_contain_text("Stopped.")
    expect(answer(page).locator("> .prose")).to_contain_text("word word")
    page.wait_for_timeout(200)
    assert fake.cut == 1
    send(page, "Hello")
    assert "word word" in fake.bodies[-1]["messages"][1]["content"]


def test_keys_break_lines_and_begin_anew(page):
    page.locator("#message").focus()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert page.locator("#message").input_value() == "one\ntwo"
    page.keyboard.press("Enter")
    expect(page.locator(".said")).to_have_text("one\ntwo")
    expect(page.locator("#send")).to_be_visible()
    page.keyboard.press("Control+k")
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator("#message")).to_be_focused()
    expect(page.locator("#conversations li")).to_have_count(1)


def test_conversations_stay_over_a_reload_and_an_answer_of_a_closed_page_is_stopped(page, fake):
    send(page, "Hello")
    fake.pause = 0.01
    send(page, "long one", wait=False)
    expect(answer(page).locator("> .prose")).to_contain_text("word word")
    page.wait_for_timeout(1200)
    page.reload()
    expect(page.locator(".message")).to_have_count(4)
    expect(page.locator(".message").nth(1)).to_contain_text("You said: Hello.")
    expect(answer(page)).to_contain_text("Stopped.")
    expect(answer(page)).to_contain_text("word word")
    expect(page.locator("#title")).to_have_text("Hello")


def test_edited_and_repeated_messages_are_branches(page, fake):
    send(page, "First")
    answer(page).get_by_label("Answer again").click()
    expect(page.locator(".branch")).to_have_text("2 / 2")
    expect(page.locator("#send")).to_be_visible()
    page.get_by_label("Edit", exact=True).click()
    page.get_by_label("Edit the message").fill("Second")
    page.keyboard.press("Enter")
    expect(answer(page).locator("> .prose")).to_have_text("You said: Second.")
    expect(page.locator("#send")).to_be_visible()
    assert fake.bodies[-1]["messages"] == [{"role": "user", "content": "Second"}]
    page.get_by_label("Earlier version").click()
    expect(answer(page).locator("> .prose")).to_have_text("You said: First.")
    expect(page.locator(".branch").last).to_have_text("2 / 2")


def test_markdown_formulas_tables_code_and_copy(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    send(page, "markdown")
    prose = answer(page).locator("> .prose")
    expect(prose.locator("h2")).to_have_text("Routing in one layer")
    expect(prose.locator(".display .katex math")).to_have_count(1)
    expect(prose.locator("td.to-right").first).to_have_text("1 µs")
    expect(prose.locator(".hljs-keyword").first).to_have_text("def")
    prose.get_by_label("Copy the code").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("def route(")
    assert copied.endswith("scores[best].sum()\n")


def test_what_a_model_says_runs_nothing_and_loads_nothing(page):
    send(page, "unsafe")
    prose = answer(page).locator("> .prose")
    expect(prose).to_contain_text("<script>window.pwned=1</script>")
    assert prose.locator("img, script, [onerror], [href^=javascript]").count() == 0
    links = prose.locator("a").evaluate_all("all => all.map((a) => [a.href, a.rel, a.target])")
    rel = "noopener noreferrer nofollow"
    assert links == [
        ["https://example.org/p.png", rel, "_blank"],
        ["https://example.org/", rel, "_blank"],
    ]
    assert page.evaluate("window.pwned") is None


def test_tool_calls_are_shown(page):
    send(page, "weather in Berlin")
    expect(answer(page).locator(".call figcaption")).to_have_text("Tool call weather")
    expect(answer(page).locator(".call code")).to_have_text('{\n  "city": "Berlin"\n}')


def test_settings_reach_the_server(page, fake):
    page.locator("#open-settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.25")
    page.get_by_label("Keep earlier thinking").check()
    page.get_by_label("Seed").fill("7")
    page.get_by_role("button", name="Done").click()
    page.locator("#thinking").click()
    send(page, "Hello")
    (body,) = fake.bodies
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["seed"]) == (0.25, 7)
    assert body["chat_template_kwargs"] == {"thinking": False, "preserve_thinking": True}
    assert "top_p" not in body
    expect(answer(page).locator("details")).to_be_hidden()


def test_export_has_the_conversation(page):
    send(page, "Hello")
    with page.expect_download() as told:
        page.locator("#export-json").click()
    exported = json.loads(told.value.path().read_text())
    assert [message["role"] for message in exported["messages"]] == ["user", "assistant"]
    with page.expect_download() as told:
        page.locator("#export-md").click()
    assert told.value.suggested_filename == "Hello.md"
    assert "## Answer" in told.value.path().read_text()


def test_conversations_are_renamed_found_deleted_and_brought_back(page):
    send(page, "Hello")
    page.locator("#new").click()
    send(page, "Good night")
    item = page.locator("#conversations li").filter(has_text="Hello")
    item.hover()
    item.get_by_label("Rename").click()
    page.get_by_label("New name").fill("Morning")
    page.keyboard.press("Enter")
    page.locator("#search").fill("said: hello")
    expect(page.locator("#conversations .name")).to_have_text(["Morning"])
    page.locator("#search").fill("")
    night = page.locator("#conversations li").filter(has_text="Good night")
    night.get_by_label("Delete").click()
    expect(page.locator("#conversations .name")).to_have_text(["Morning"])
    expect(page.locator(".message")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".said")).to_have_text("Good night")
    page.reload()
    expect(page.locator("#conversations .name")).to_have_text(["Good night", "Morning"])


# --- trouble --------------------------------------------------------------------------------------


def error(status: int, message: str, kind: str = "", headers: Any = None) -> JSONResponse:
    body = {"error": {"code": status, "type": kind, "message": message}}
    return JSONResponse(body, status, headers)


def test_failure_in_the_middle_is_told_and_the_text_stays(page):
    send(page, "break")
    expect(answer(page)).to_contain_text("Half an")
    expect(answer(page).locator(".bad")).to_have_text("It broke.")
    answer(page).get_by_label("Answer again").click()
    expect(page.locator(".branch")).to_have_text("2 / 2")


def test_overflow_is_told(page, fake):
    message = "the prompt has 9,000 tokens, the context holds 8,192"
    fake.refusals = [error(400, message, "exceed_context_size_error")]
    send(page, "Hello")
    expect(answer(page).locator(".bad")).to_contain_text(f"too long. {message}")


def test_busy_server_is_asked_again_when_it_says(page, fake):
    fake.refusals = [error(429, "the queue is full", headers={"Retry-After": "1"})]
    send(page, "Hello", wait=False)
    expect(answer(page)).to_contain_text("The server is busy: next try in 1 s")
    expect(answer(page).locator("> .prose")).to_have_text("You said: Hello.")


def test_missing_key_is_asked_for_and_sent(page, fake):
    fake.refusals = [error(401, "a valid API key is needed")]
    send(page, "Hello")
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("secret")
    page.keyboard.press("Enter")
    with page.expect_request("**/v1/chat/completions") as asked:
        answer(page).get_by_label("Answer again").click()
    assert asked.value.headers["authorization"] == "Bearer secret"


def test_loading_is_shown_until_the_model_is_there(page, fake):
    fake.health = {
        "status": "loading model",
        "progress": {"phase": "copy", "done": 30 * 10**9, "total": 120 * 10**9},
    }
    page.reload()
    expect(page.locator("#banner")).to_have_text("Loading the model: copy, 30 GB of 120 GB (25 %)")
    expect(page.locator("#send")).to_be_disabled()
    fake.health = {"status": "ok"}
    expect(page.locator("#send")).to_be_enabled()
    expect(page.locator("#banner")).to_be_hidden()


def test_lost_server_is_told_and_found_again(opened):
    fake = Fake()
    with serving(fake.app()) as address:
        page = opened(address)
        fake.pause = 0.01
        send(page, "long one", wait=False)
        expect(answer(page).locator("> .prose")).to_contain_text("word word")
    expect(answer(page).locator(".bad")).to_have_text(re.compile("connection was lost"))
    send(page, "Hello", wait=False)
    expect(answer(page)).to_contain_text("The server does not answer: next try")
    with serving(Fake().app(), int(address.rpartition(":")[2])):
        expect(answer(page).locator("> .prose")).to_have_text("You said: Hello.")


# --- tabs -----------------------------------------------------------------------------------------


def test_two_tabs_show_and_change_the_same_conversations(opened, fake):
    one = opened()
    send(one, "Hello")
    two = opened()
    two.locator("#conversations a").click()
    expect(answer(two)).to_contain_text("You said: Hello.")
    fake.pause = 0.01
    send(one, "long one", wait=False)
    expect(answer(two)).to_contain_text("word word")
    expect(answer(two)).not_to_contain_text("Stopped.")
    fake.pause = 0
    two.locator("#new").click()
    send(two, "Second")
    expect(one.locator("#conversations li")).to_have_count(2)
    expect(one.locator("#send")).to_be_visible(timeout=30_000)
    two.locator("#conversations li").filter(has_text="Hello").hover()
    two.get_by_label("Delete: Hello").click()
    expect(one.locator("#conversations .name")).to_have_text(["Second"])
    expect(one.locator(".message")).to_have_count(0)


def test_conversation_deleted_elsewhere_ends_its_answer_and_stays_deleted(opened, fake):
    one, two = opened(), opened()
    fake.pause = 0.01
    send(one, "long one", wait=False)
    expect(answer(one).locator("> .prose")).to_contain_text("word word")
    two.locator("#conversations li").hover()
    two.get_by_label("Delete: long one").click()
    expect(one.locator(".message")).to_have_count(0)
    one.wait_for_timeout(1500)
    assert fake.cut == 1
    one.reload()
    expect(one.locator("#conversations")).to_have_text("No conversations yet")


def test_keys_reach_nothing_that_is_covered_on_a_phone(opened, fake):
    page = opened(viewport=PHONE)
    page.locator("#machine-toggle").click()
    expect(page.locator("#close-machine")).to_be_focused()
    for _ in range(12):
        page.keyboard.press("Tab")
        inside = "document.activeElement === document.body || !!document.activeElement.closest"
        assert page.evaluate(f"{inside}('#machine, .skip')")
    page.keyboard.press("Escape")
    expect(page.locator("#machine")).to_be_hidden()
    page.locator("#open-sidebar").click()
    expect(page.locator("#new")).to_be_focused()
    page.mouse.click(365, 400)
    expect(page.locator("#sidebar")).not_to_be_in_viewport()


# --- the machine ----------------------------------------------------------------------------------


def test_machine_panel_shows_tiers_experts_slots_and_the_plan(page):
    panel = page.locator("#machine")
    expect(panel).to_contain_text("RAM slots")
    expect(panel).to_contain_text("11.9 t/s predicted, 10.9 measured")
    expect(panel).to_contain_text("waits, no. 1")
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


def check_axe(page: Page, where: str) -> None:
    page.wait_for_timeout(250)  # transitions
    found = Axe().run(page).response["violations"]
    told = [(one["id"], [n["html"][:200] for n in one["nodes"]]) for one in found]
    assert not told, where


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
