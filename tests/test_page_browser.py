"""The page in Chromium: chat, keys, conversations. Its server's answers are scripted."""

from __future__ import annotations

import json
import re

from page_fixtures import answer, browser, fake, fake_server, opened, page, send
from playwright.sync_api import expect

__all__ = ["browser", "fake", "fake_server", "opened", "page"]


def test_answer_streams_with_its_thinking_folded_and_its_figures(page, fake):
    send(page, "Hello")
    expect(answer(page).locator("> .prose")).to_have_text("You said: Hello.")
    thinking = answer(page).locator("details")
    expect(thinking.locator("summary")).to_have_text("Thought · 42 tokens")
    expect(thinking.locator(".prose")).not_to_be_visible()
    thinking.locator("summary").click()
    expect(thinking.locator(".prose")).to_contain_text("compare tiers by latency")
    expect(answer(page).locator(".figures")).to_contain_text(
        "10.9 t/s · prompt of 1,204 tokens, 1,180 known already"
    )
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
