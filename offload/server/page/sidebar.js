// The list of conversations: open, rename, delete, search.

import { $, fill, node, toast } from "./dom.js";
import { day } from "./figures.js";
import { matches, touch } from "./conversation.js";

export class Sidebar {
  // acts: {open(conversation), gone(conversation), renamed(conversation)}
  constructor(store, acts) {
    Object.assign(this, { store, acts });
    this.all = new Map();
    this.current = null;
    $("search").addEventListener("input", () => this.render());
  }

  async load() {
    this.all = new Map((await this.store.all()).map((one) => [one.id, one]));
    this.render();
  }

  async reload(id) {
    const stored = await this.store.load(id);
    if (stored && !stored.is_deleted) this.all.set(id, stored);
    else this.all.delete(id);
    this.render();
  }

  put(conversation) {
    this.all.set(conversation.id, conversation);
    this.render();
  }

  choose(id) {
    this.current = id;
    this.render();
  }

  render() {
    if (this.renaming) return;
    const words = $("search").value.trim();
    const found = [...this.all.values()]
      .filter((one) => matches(one, words))
      .sort((a, b) => b.updated - a.updated);
    const focused = document.activeElement?.dataset?.focus;
    const none = node("li", { class: "none" }, words ? "Nothing found" : "No conversations yet");
    fill($("conversations"), ...(found.length ? found.map((one) => this.item(one)) : [none]));
    if (focused && document.activeElement === document.body)
      $("conversations")
        .querySelector(`[data-focus="${CSS.escape(focused)}"]`)
        ?.focus();
  }

  // What its buttons do is done to the conversation that then has this id.
  item({ id, title, updated }) {
    const is_current = id === this.current;
    const one = () => this.all.get(id);
    const act = (name, icon, run) =>
      node("button", {
        type: "button",
        class: "icon small",
        icon,
        title: name,
        "data-focus": `${name} ${id}`,
        aria: { label: `${name}: ${title}` },
        onclick: run,
      });
    return node(
      "li",
      { class: is_current ? "current" : "" },
      node(
        "a",
        {
          href: `#${id}`,
          "data-focus": `open ${id}`,
          aria: is_current ? { current: "page" } : {},
          onclick: (event) => {
            event.preventDefault();
            this.acts.open(one());
          },
        },
        node("span", { class: "name", dir: "auto" }, title),
        node("span", { class: "when" }, day(updated)),
      ),
      node(
        "span",
        { class: "acts" },
        act("Rename", "edit", (event) => this.rename(one(), event.currentTarget.closest("li"))),
        act("Delete", "trash", () => this.remove(one())),
      ),
    );
  }

  rename(one, item) {
    this.renaming = true;
    const box = node("input", { class: "rename", aria: { label: "New name" } });
    box.value = one.title;
    const end = async (text) => {
      if (!this.renaming) return;
      this.renaming = false;
      if (text?.trim()) {
        Object.assign(one, { title: text.trim(), is_named: true });
        touch(one);
        this.acts.renamed(one);
        await this.store.save(one);
      }
      this.render();
      $("conversations").querySelector(`[data-focus="Rename ${one.id}"]`)?.focus();
    };
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(box.value);
      if (event.key === "Escape") {
        event.stopPropagation();
        end(null);
      }
    });
    box.addEventListener("blur", () => end(box.value));
    item.replaceChildren(box);
    box.select();
  }

  async remove(one) {
    this.all.delete(one.id);
    this.render();
    const restore = async (is_deleted) => {
      Object.assign(one, { is_deleted });
      touch(one);
      await this.store.save(one);
    };
    await restore(true);
    this.acts.gone(one);
    $("new").focus();
    toast(`Deleted “${one.title}”`, {
      label: "Undo",
      run: async () => {
        await restore(false);
        this.put(one);
        this.acts.open(one);
      },
    });
  }
}
