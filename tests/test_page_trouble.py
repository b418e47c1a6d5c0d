"""The page in Chromium when something is wrong, and in two tabs. Its server is scripted."""

from __future__ import annotations

import re
from typing import Any

from page_fixtures import PHONE, answer, browser, fake, fake_server, opened, page, send
from page_server import Fake, serving
from playwright.sync_api import expect
from starlette.responses import JSONResponse

__all__ = ["browser", "fake", "fake_server", "opened", "page"]


def error(
    status: int, message: str, kind: str = "", headers: Any = None, **more: int
) -> JSONResponse:
    body = {"error": {"code": status, "type": kind, "message": message} | more}
    return JSONResponse(body, status, headers)


def test_failure_in_the_middle_is_told_and_the_text_stays(page):
    send(page, "break")
    expect(answer(page)).to_contain_text("Half an")
    expect(answer(page).locator(".bad")).to_have_text("It broke.")
    answer(page).get_by_label("Answer again").click()
    expect(page.locator(".branch")).to_have_text("2 / 2")


def test_overflow_is_told(page, fake):
    sizes = {"n_prompt_tokens": 9000, "n_ctx": 8192}
    fake.refusals = [error(400, "for agents", "exceed_context_size_error", **sizes)]
    send(page, "Hello")
    expect(answer(page).locator(".bad")).to_contain_text(
        "The conversation has 9,000 tokens, the context holds 8,192."
    )
    send(page, "Shorter")
    assert [one["role"] for one in fake.bodies[-1]["messages"]] == ["user", "user"]


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
    expect(page.locator("#banner")).to_have_text(
        "Loading the model: copying the weights, 30 GB of 120 GB (25 %)"
    )
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


def test_answers_in_many_tabs_leave_connections_for_a_further_page(opened, fake):
    fake.pause = 0.02
    tabs = [opened() for _ in range(5)]
    for tab in tabs:
        send(tab, "long one", wait=False)
    waits = "Waiting for another answer in this browser"
    expect(answer(tabs[-1])).to_contain_text(waits)
    last = opened()  # a browser has six connections to a server
    expect(last.locator("#machine-label")).to_contain_text("t/s")
    tabs[0].keyboard.press("Escape")
    expect(answer(tabs[-1]).locator(".progress")).to_be_hidden()
    expect(answer(tabs[-1]).locator("> .prose")).to_contain_text("word word")
    send(last, "another", wait=False)
    expect(answer(last)).to_contain_text(waits)
    last.keyboard.press("Escape")
    expect(answer(last)).to_contain_text("Stopped.")


def test_branch_begun_in_another_tab_takes_nobody_from_theirs(opened, fake):
    one, two = opened(), opened()
    send(one, "Hello")
    two.locator("#conversations a").click()
    two.get_by_label("Edit", exact=True).click()
    two.get_by_label("Edit the message").fill("Other")
    two.keyboard.press("Enter")
    expect(answer(two).locator("> .prose")).to_have_text("You said: Other.")
    expect(one.locator(".branch")).to_have_text("1 / 2")
    expect(one.locator(".said")).to_have_text("Hello")
    send(two, "And")
    one.get_by_label("Later version").click()
    expect(one.locator(".said")).to_have_text(["Other", "And"])


def test_question_asked_while_another_tab_answers_is_not_lost(opened, fake):
    one = opened()
    fake.pause = 0.01
    send(one, "long one", wait=False)
    expect(answer(one).locator("> .prose")).to_contain_text("word word")
    two = opened()
    two.locator("#conversations a").click()
    expect(answer(two)).to_contain_text("word word")
    send(two, "Meanwhile")
    expect(answer(two).locator("> .prose")).to_have_text("You said: Meanwhile.")
    one.wait_for_timeout(1500)
    one.locator("#message").focus()
    one.keyboard.press("Escape")
    for tab in (one, two):
        expect(tab.locator(".said")).to_have_text(["long one", "Meanwhile"])
    one.reload()
    expect(one.locator(".said")).to_have_text(["long one", "Meanwhile"])
