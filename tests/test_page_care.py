"""The page in Chromium: where the focus goes, and what a browser keeps, or does not."""

from __future__ import annotations

import pytest
from page_fixtures import answer, browser, fake, fake_server, opened, page, send
from playwright.sync_api import expect

__all__ = ["browser", "fake", "fake_server", "opened", "page"]

SETTINGS = "kimi-offload settings"


# --- focus ----------------------------------------------------------------------------------------


def test_focus_is_not_lost_when_the_button_that_was_pressed_goes(page, fake):
    send(page, "First")
    answer(page).get_by_label("Answer again").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_be_focused()
    expect(page.locator(".branch")).to_have_text("2 / 2")
    expect(page.locator("#send")).to_be_visible()
    page.get_by_label("Earlier version").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Later version")).to_be_focused()
    page.get_by_label("Edit", exact=True).focus()
    page.keyboard.press("Enter")
    page.keyboard.type(" and more")
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_be_focused()


def test_focus_on_a_message_stays_while_an_answer_comes_and_ends(page, fake):
    send(page, "First")
    copy = page.locator(".message.user").first.get_by_label("Copy")
    fake.pause = 0.01
    send(page, "Second", wait=False)
    copy.focus()
    expect(page.locator("#send")).to_be_visible()
    expect(copy).to_be_focused()


def test_escape_in_a_search_empties_it_and_leaves_the_answer(page, fake):
    fake.pause = 0.01
    send(page, "long one", wait=False)
    expect(answer(page).locator("> .prose")).to_contain_text("word word")
    page.locator("#search").fill("abc")
    page.keyboard.press("Escape")
    expect(page.locator("#search")).to_have_value("")
    expect(page.locator("#stop")).to_be_visible()
    page.keyboard.press("Escape")
    expect(answer(page)).to_contain_text("Stopped.")


def test_link_to_the_message_box_leaves_the_conversation_in_the_address(page):
    send(page, "Hello")
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_be_focused()
    page.reload()
    expect(page.locator(".said")).to_have_text("Hello")


def test_item_of_the_list_stays_itself_while_an_answer_is_saved(page, fake):
    fake.pause = 0.01
    send(page, "long one", wait=False)
    page.evaluate("document.querySelector('#conversations li').mark = 1")
    page.wait_for_timeout(2500)
    assert page.evaluate("document.querySelector('#conversations li').mark") == 1
    page.keyboard.press("Escape")


# --- what the browser keeps -----------------------------------------------------------------------

NONE_KEPT = """
  const refused = () => { throw new DOMException("no", "SecurityError"); };
  for (const name of ["localStorage", "sessionStorage"])
    Object.defineProperty(window, name, { get: refused });
  indexedDB.open = refused;
  navigator.locks.request = navigator.locks.query = async () => refused();
"""
FULL = """
  const full = () => { throw new DOMException("full", "QuotaExceededError"); };
  IDBObjectStore.prototype.put = full;
  Storage.prototype.setItem = full;
"""


def test_browser_that_keeps_nothing_has_a_whole_page(opened, fake):
    page = opened()
    page.add_init_script(NONE_KEPT)
    page.reload()
    expect(page.locator("#toast")).to_contain_text("keeps no data")
    send(page, "Hello")
    expect(answer(page)).to_contain_text("You said: Hello.")
    page.locator("#thinking").click()
    page.locator("#theme").click()
    expect(page.locator("#theme")).to_have_attribute("aria-label", "Theme: light")
    page.locator("#new").click()
    page.locator("#conversations a").click()
    expect(answer(page)).to_contain_text("You said: Hello.")


def test_full_storage_is_told_once(opened, fake):
    page = opened()
    page.add_init_script(FULL)
    page.reload()
    page.evaluate(
        """window.toasts = []; new MutationObserver(() => toasts.push($toast.textContent))
           .observe(window.$toast = document.querySelector("#toast"), { childList: true })"""
    )
    send(page, "Hello")
    send(page, "And")
    expect(answer(page)).to_contain_text("You said: And.")
    told = [text for text in page.evaluate("toasts") if text]
    assert told == ["This browser did not keep the conversation: full"]


@pytest.mark.parametrize(
    "text", ["null", "[]", '"x"', "{bad", '{"system": 5, "temperature": {}, "thinking": "no"}']
)
def test_damaged_settings_are_the_usual_ones(page, fake, text):
    page.evaluate("([name, text]) => localStorage.setItem(name, text)", [SETTINGS, text])
    page.reload()
    send(page, "Hello")
    (body,) = fake.bodies
    assert body["messages"] == [{"role": "user", "content": "Hello"}]
    assert body["chat_template_kwargs"] == {"thinking": True}
    assert "temperature" not in body


def test_damaged_conversations_are_left_out(page):
    send(page, "Hello")
    page.evaluate(
        """async () => {
          const request = indexedDB.open("kimi-offload");
          await new Promise((done) => (request.onsuccess = done));
          const change = request.result.transaction("conversations", "readwrite");
          const store = change.objectStore("conversations");
          store.put("junk", "a");
          store.put({ id: "b" }, "b");
          store.put({ id: "c", title: "C", nodes: { x: { id: "x" } }, leaf: "x" }, "c");
          await new Promise((done) => (change.oncomplete = done));
        }"""
    )
    page.reload()
    expect(page.locator("#conversations .name")).to_have_text(["Hello"])
    expect(page.locator(".said")).to_have_text("Hello")


def test_key_of_any_letters_is_sent_as_utf8(page, fake):
    page.locator("#open-settings").click()
    page.get_by_label("API key").fill("schlüssel €")
    page.get_by_role("button", name="Done").click()
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, "Hello")
    sent = asked.value.headers["authorization"]
    assert sent.encode("latin-1").decode() == "Bearer schlüssel €"


def test_chosen_theme_is_there_before_the_scripts(page):
    page.locator("#theme").click()
    page.locator("#theme").click()
    page.route("**/page/main.js", lambda route: route.abort())
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_name_given_in_another_tab_outlives_the_answer_here(opened, fake):
    one = opened()
    fake.pause = 0.01
    send(one, "long one", wait=False)
    expect(answer(one).locator("> .prose")).to_contain_text("word word")
    two = opened()
    two.locator("#conversations li").hover()
    two.get_by_label("Rename").click()
    two.get_by_label("New name").fill("Words")
    two.keyboard.press("Enter")
    expect(one.locator("#title")).to_have_text("Words")
    one.wait_for_timeout(1500)
    one.keyboard.press("Escape")
    expect(answer(one)).to_contain_text("Stopped.")
    one.reload()
    expect(one.locator("#title")).to_have_text("Words")
