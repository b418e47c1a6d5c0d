// The conversation on show: sending, stopping, answering again, branches, saving.

import { $, say, toast, toggle } from "./dom.js";
import {
  addNode,
  asMessage,
  childrenOf,
  choose,
  endOf,
  merged,
  newConversation,
  path,
  requestMessages,
  touch,
} from "./conversation.js";
import { answerInto } from "./answering.js";
import { MessageView } from "./message.js";
import { settings } from "./settings.js";
import { holdAnswer, isAnswering } from "./store.js";

const SAVE_EVERY = 1000; // ms, while an answer grows
const NEAR = 60; // pixels from the end, within which the view follows an answer

export class Chat {
  // changed(): title or content, for the list. needsKey(): the server wants one.
  constructor(store, { changed, needsKey }) {
    Object.assign(this, { store, changed, needsKey });
    this.views = new Map();
    this.isKept = true; // what was saved last
    this.running = new Map(); // conversation id -> {controller, conversation, message}
    this.conversation = newConversation();
    this.isFollowing = true; // the end of the messages was in view at last
    $("scroll").addEventListener("scroll", () => this.followed());
    new ResizeObserver(() => this.followed()).observe($("messages"));
    // a keyboard on the screen, or a long text in the box, leaves it less room
    new ResizeObserver(() => this.isFollowing && this.toEnd()).observe($("scroll"));
    $("to-end").addEventListener("click", () => {
      this.toEnd();
      $("scroll").focus({ preventScroll: true }); // the button goes
    });
  }

  get answering() {
    return this.running.get(this.conversation.id);
  }

  show(conversation) {
    this.conversation = this.running.get(conversation.id)?.conversation ?? conversation;
    this.views.clear();
    $("messages").replaceChildren();
    this.render();
    this.toEnd();
    this.findLost();
  }

  // Answers of tabs that have gone.
  async findLost() {
    const { conversation } = this;
    for (const message of Object.values(conversation.nodes)) {
      if (
        message.state !== "running" ||
        this.answering?.message === message ||
        (await isAnswering(message.id))
      )
        continue;
      message.state = "stopped";
      touch(conversation, message);
    }
    if (conversation === this.conversation) this.render();
  }

  // It was deleted: its answer ends, and nothing of it is kept.
  drop(id) {
    const found = this.running.get(id);
    if (!found) return;
    found.conversation.is_deleted = true;
    found.controller.abort();
  }

  // Another tab has changed it.
  async reload(id) {
    const stored = await this.store.load(id);
    if (stored?.is_deleted) this.drop(id);
    if (!stored || id !== this.conversation.id) return;
    if (stored.is_deleted) return this.show(newConversation());
    if (this.answering) {
      const { nodes, title, is_named } = merged(stored, this.conversation);
      const { message } = this.answering; // it grows here, whatever the other tab made of it
      Object.assign(this.conversation, { title, is_named });
      Object.assign(this.conversation.nodes, nodes, { [message.id]: message });
      this.conversation.leaf = endOf(this.conversation, this.conversation.leaf);
    } else {
      // each tab stays on its own branch, and follows what is said there
      const { leaf } = this.conversation;
      if (stored.nodes[leaf]) stored.leaf = endOf(stored, leaf);
      this.conversation = stored;
    }
    this.render();
    this.findLost();
  }

  async send(text) {
    const last = path(this.conversation).at(-1);
    addNode(this.conversation, last?.id ?? null, { content: text });
    await this.answer();
  }

  async edit(id, text) {
    addNode(this.conversation, this.conversation.nodes[id].parent, { content: text });
    await this.answer();
  }

  async again(id) {
    this.conversation.leaf = this.conversation.nodes[id].parent;
    await this.answer();
  }

  turn(id, step) {
    const { conversation } = this;
    const all = childrenOf(conversation, conversation.nodes[id].parent);
    const next = all[all.findIndex((one) => one.id === id) + step];
    choose(conversation, next.id);
    this.render();
    this.views.get(next.id).focusTurn(step);
    this.save(conversation);
  }

  stop() {
    this.answering?.controller.abort();
  }

  // An answer to the message shown last.
  async answer() {
    const { conversation } = this;
    const asked = conversation.nodes[conversation.leaf];
    const { system } = settings.values;
    const body = {
      messages: requestMessages(conversation, asked, system),
      stream: true,
      stream_options: { include_usage: true },
      return_progress: true,
      ...settings.body(),
    };
    const message = addNode(conversation, asked.id, { role: "assistant", state: "running" });
    const controller = new AbortController();
    this.running.set(conversation.id, { controller, conversation, message });
    const release = holdAnswer(message.id);
    this.render();
    this.toEnd();
    // the button that asked for it is gone; a finger wants no keyboard on the screen now
    if (document.activeElement === document.body)
      $(matchMedia("(hover: none)").matches ? "scroll" : "message").focus({ preventScroll: true });
    say($("announcer"), "Answering");
    await this.save(conversation);
    let saved = performance.now();
    await answerInto(message, body, controller.signal, () => {
      this.renderSoon(conversation);
      if (performance.now() - saved > SAVE_EVERY) {
        saved = performance.now();
        touch(conversation, message);
        this.save(conversation);
      }
    });
    this.running.delete(conversation.id);
    touch(conversation, message);
    release();
    this.announce(message);
    if (conversation.id === this.conversation.id) this.render();
    await this.save(conversation);
    if (message.needs === "key") this.needsKey();
  }

  // The whole answer at its end, not every token of it.
  announce(message) {
    const end = { done: "Answer", stopped: "Stopped", failed: `Failed: ${message.error}` }[
      message.state
    ];
    say(
      $("announcer"),
      `${end}. ${message.state === "failed" ? "" : message.content.slice(0, 2000)}`,
    );
  }

  async save(conversation) {
    if (!conversation.is_deleted) this.changed(conversation);
    try {
      await this.store.save(conversation);
      this.isKept = true;
    } catch (error) {
      if (this.isKept) toast(`This browser did not keep the conversation: ${error.message}`);
      this.isKept = false; // that was said
    }
  }

  // At most once a frame, and no more than a fifth of the time where that is slow.
  renderSoon(conversation) {
    if (conversation.id !== this.conversation.id || this.isDue) return;
    this.isDue = true;
    setTimeout(
      () =>
        requestAnimationFrame(() => {
          this.isDue = false;
          const began = performance.now();
          this.render();
          this.wait = 4 * (performance.now() - began);
        }),
      this.wait > 16 ? this.wait : 0,
    );
  }

  render() {
    const { conversation, views } = this;
    const is_busy = Boolean(this.answering);
    const messages = path(conversation);
    const follows = this.isAtEnd();
    const wanted = new Set(messages.map((message) => message.id));
    for (const [id, view] of views) {
      if (wanted.has(id)) continue;
      view.root.remove();
      views.delete(id);
    }
    messages.forEach((message, index) => {
      let view = views.get(message.id);
      if (!view) {
        view = new MessageView(message, {
          edit: (id, text) => this.edit(id, text),
          again: (id) => this.again(id),
          turn: (id, step) => this.turn(id, step),
        });
        views.set(message.id, view);
      }
      const place = $("messages").children[index];
      if (place !== view.root) $("messages").insertBefore(view.root, place ?? null);
      const all = childrenOf(conversation, message.parent);
      view.update(
        message,
        { index: all.findIndex((one) => one.id === message.id), of: all.length },
        is_busy,
      );
    });
    toggle($("empty"), messages.length === 0);
    for (const id of ["export-md", "export-json"]) $(id).disabled = messages.length === 0;
    say($("title"), conversation.title);
    document.title = messages.length ? `${conversation.title} · kimi-offload` : "kimi-offload";
    toggle($("stop"), is_busy);
    toggle($("send"), !is_busy);
    if (follows) this.toEnd();
  }

  isAtEnd() {
    const place = $("scroll");
    return place.scrollHeight - place.scrollTop - place.clientHeight < NEAR;
  }

  toEnd() {
    $("scroll").scrollTop = $("scroll").scrollHeight;
  }

  followed() {
    this.isFollowing = this.isAtEnd();
    toggle($("to-end"), !this.isFollowing);
  }

  markdown() {
    const parts = path(this.conversation).map((message) => {
      const thought = message.reasoning
        ? `<details><summary>Thinking</summary>\n\n${message.reasoning.trim()}\n\n</details>\n\n`
        : "";
      const calls = message.calls
        .map((call) => `\n\nTool call \`${call.name}\`:\n\n\`\`\`json\n${call.arguments}\n\`\`\``)
        .join("");
      return `## ${message.role === "user" ? "You" : "Answer"}\n\n${thought}${message.content}${calls}`;
    });
    return `# ${this.conversation.title}\n\n${parts.join("\n\n")}\n`;
  }

  json() {
    const { system } = settings.values;
    const messages = path(this.conversation).map(asMessage);
    if (system.trim()) messages.unshift({ role: "system", content: system });
    return JSON.stringify(
      { title: this.conversation.title, messages, conversation: this.conversation },
      null,
      2,
    );
  }
}
