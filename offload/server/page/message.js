// One message as it is shown: thinking folded away, the answer, tool calls, figures, what can be done.

import { copy, node, say, toggle } from "./dom.js";
import { count, duration, plural, rate } from "./figures.js";
import { showMarkdown } from "./markdown.js";

export class MessageView {
  // acts: {edit(id, text), again(id), turn(id, step)}
  constructor(message, acts) {
    this.id = message.id;
    this.acts = acts;
    this.is_mine = message.role === "user";
    this.body = node("div", this.is_mine ? { class: "said", dir: "auto" } : { class: "prose" });
    this.foot = node("footer", { class: "message-foot" });
    this.live = node("span", { class: "figures" });
    this.root = node("article", {
      class: `message ${message.role}`,
      aria: { label: this.is_mine ? "You" : "Answer" },
    });
    if (this.is_mine) this.root.append(this.body, this.foot);
    else {
      this.thought = node("div", { class: "prose" });
      this.summary = node("summary", {});
      this.thinking = node(
        "details",
        { class: "thinking", ontoggle: () => this.last && this.showThinking(this.last) },
        this.summary,
        this.thought,
      );
      this.calls = node("div", { class: "calls" });
      this.note = node("div", { class: "progress" });
      this.root.append(this.thinking, this.body, this.calls, this.note, this.foot);
    }
  }

  // branch: {index, of} among the versions of this message. busy: an answer is under way.
  update(message, branch, is_busy) {
    this.last = message;
    if (this.is_editing) return;
    if (this.is_mine) say(this.body, message.content);
    else {
      this.showThinking(message);
      if (this.shown !== message.content) showMarkdown(this.body, message.content);
      this.shown = message.content;
      this.showCalls(message.calls);
      this.showNote(message);
    }
    this.root.setAttribute("aria-busy", message.state === "running");
    say(this.live, liveOf(message));
    const key = JSON.stringify([message.state, branch, is_busy, message.usage, message.finish]);
    if (key === this.footKey) return;
    this.footKey = key;
    this.showFoot(message, branch, is_busy);
  }

  showThinking(message) {
    toggle(this.thinking, Boolean(message.reasoning));
    if (!message.reasoning) return;
    const is_open = message.state === "running" && !message.content && !message.calls.length;
    const tokens = message.usage?.reasoning ?? message.reasoned;
    say(
      this.summary,
      `${is_open ? "Thinking" : "Thought"}${tokens ? ` · ${plural(tokens, "token")}` : ""}`,
    );
    this.thinking.classList.toggle("live", is_open);
    if (this.thinking.open) showMarkdown(this.thought, message.reasoning);
  }

  showCalls(calls) {
    const key = JSON.stringify(calls);
    if (key === this.callsKey) return;
    this.callsKey = key;
    this.calls.replaceChildren(
      ...calls.map((call) =>
        node(
          "figure",
          { class: "code call" },
          node("figcaption", {}, node("span", {}, "Tool call ", node("strong", {}, call.name))),
          node(
            "pre",
            { tabindex: 0, role: "region", aria: { label: `Arguments of ${call.name}` } },
            node("code", {}, pretty(call.arguments)),
          ),
        ),
      ),
    );
  }

  showNote(message) {
    const text = noteOf(message);
    toggle(this.note, Boolean(text));
    this.note.classList.toggle("bad", message.state === "failed");
    if (!text) return;
    const { reading } = message;
    const share =
      message.state === "running" && reading?.total ? reading.done / reading.total : null;
    if (share !== null && !this.bar)
      this.bar = node("progress", { max: 1, aria: { label: "Prompt read" } });
    if (share !== null) this.bar.value = share;
    this.text ??= node("span", {});
    say(this.text, text);
    const parts = share === null ? [this.text] : [this.text, this.bar];
    if (this.note.childNodes.length !== parts.length || this.note.firstChild !== parts[0])
      this.note.replaceChildren(...parts);
  }

  showFoot(message, branch, is_busy) {
    const parts = message.state === "running" ? [this.live] : [];
    if (branch.of > 1) {
      const step = (by, name, icon) =>
        node("button", {
          type: "button",
          class: "icon small",
          icon,
          disabled: is_busy || branch.index + by < 0 || branch.index + by >= branch.of,
          aria: { label: name },
          title: name,
          onclick: () => this.acts.turn(this.id, by),
        });
      parts.push(
        step(-1, "Earlier version", "left"),
        node("span", { class: "branch" }, `${branch.index + 1} / ${branch.of}`),
        step(1, "Later version", "right"),
      );
    }
    if (message.state !== "running") {
      const act = (name, icon, run) =>
        node("button", {
          type: "button",
          class: "icon small",
          icon,
          disabled: is_busy && name !== "Copy",
          title: name,
          aria: { label: name },
          onclick: run,
        });
      if (message.content) parts.push(act("Copy", "copy", () => copy(message.content)));
      if (this.is_mine) parts.push(act("Edit", "edit", () => this.edit()));
      else parts.push(act("Answer again", "redo", () => this.acts.again(this.id)));
      const figures = figuresOf(message);
      if (figures) parts.push(node("span", { class: "figures" }, figures));
    }
    const focused = this.foot.contains(document.activeElement) && document.activeElement.title;
    this.foot.replaceChildren(...parts);
    if (focused) this.button(focused)?.focus();
  }

  button(name) {
    return this.foot.querySelector(`button[title="${name}"]:enabled`);
  }

  // After a turn to this version: the same button, or the one back where it was the last.
  focusTurn(step) {
    const names = ["Earlier version", "Later version"];
    for (const name of step < 0 ? names : names.reverse()) {
      const button = this.button(name);
      if (button) return button.focus();
    }
  }

  edit() {
    this.is_editing = true;
    const area = node("textarea", {
      rows: Math.min(12, this.last.content.split("\n").length + 1),
      aria: { label: "Edit the message" },
    });
    area.value = this.last.content;
    const end = (text) => {
      this.is_editing = false;
      this.body.replaceChildren();
      this.root.classList.remove("editing");
      this.body.textContent = this.last.content;
      if (text?.trim() && text !== this.last.content) this.acts.edit(this.id, text);
      else this.foot.querySelector("[aria-label=Edit]")?.focus();
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        end(area.value);
      }
      if (event.key === "Escape") {
        event.stopPropagation();
        end(null);
      }
    });
    this.root.classList.add("editing");
    this.body.replaceChildren(
      area,
      node(
        "div",
        { class: "edit-foot" },
        node("button", { type: "button", class: "quiet", onclick: () => end(null) }, "Cancel"),
        node(
          "button",
          { type: "button", class: "primary", onclick: () => end(area.value) },
          "Send",
        ),
      ),
    );
    area.focus();
  }
}

// What the server says in half a sentence, without the mark for programs.
const sentence = (text) =>
  `${text[0].toUpperCase()}${text.slice(1).replace(/ \(\w+\)$/, "")}.`;

const ENDS = {
  length: "Ended at the limit of tokens.",
  loop: "Ended: it went in circles.",
};

function noteOf(message) {
  if (message.state === "failed") return message.error;
  if (message.state === "stopped") return "Stopped.";
  if (message.state !== "running")
    return [ENDS[message.finish], ...(message.warnings ?? []).map(sentence)].filter(Boolean).join(" ");
  if (message.waiting) return message.waiting;
  if (message.content || message.reasoning || message.calls.length) return "";
  if (message.reading) {
    const { done, total, reused } = message.reading;
    return `Reading the prompt: ${count(done)} of ${plural(total, "token")}${reused ? `, ${count(reused)} known already` : ""}`;
  }
  return message.queued
    ? `Waiting in the queue, position ${message.queued}`
    : "Waiting for the first token";
}

// While it grows.
function liveOf({ state, came, began }) {
  if (state !== "running" || !came || came < 2) return "";
  return `${plural(came, "token")} · ${rate((1000 * (came - 1)) / Math.max(1, performance.now() - began))} t/s`;
}

// "412 tokens · 10.9 t/s · prompt of 1,204 tokens, 1,180 known already, in 0.3 s"
function figuresOf({ usage, timings }) {
  if (!usage) return "";
  const parts = [plural(usage.completion, "token")];
  if (timings?.predicted_per_second) parts.push(`${rate(timings.predicted_per_second)} t/s`);
  let prompt = `prompt of ${plural(usage.prompt, "token")}`;
  if (usage.cached) prompt += `, ${count(usage.cached)} known already`;
  if (timings?.prompt_ms) prompt += `, in ${duration(timings.prompt_ms / 1000)}`;
  return [...parts, prompt].join(" · ");
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
