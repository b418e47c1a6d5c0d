// What lies where, and who has which slot.

import { fill, node, toggle } from "./dom.js";
import { bytes, count, rate } from "./figures.js";
import { head, row, section, table, TIERS } from "./figures_table.js";

const STATES = { queued: "waits", reading: "reads", answering: "answers", over: "ends" };

export function slots() {
  const body = node("tbody", {});
  const empty = node("p", { class: "quiet-text" }, "Nothing runs, nobody waits.");
  const figures = node(
    "table",
    { class: "figures-table words" },
    head("Slot", "State", "Prompt", "Tokens", "t/s"),
    body,
  );
  const root = section("Slots and queue", figures, empty);
  return {
    root,
    show({ slots: told }) {
      root.hidden = false;
      toggle(figures, told.length);
      toggle(empty, !told.length);
      fill(
        body,
        ...told.map((slot) => {
          const state =
            slot.state === "queued" ? `waits, no. ${slot.position}` : STATES[slot.state];
          const prompt =
            slot.state === "reading"
              ? `${count(slot.read)} / ${count(slot.prompt_tokens)}`
              : count(slot.prompt_tokens);
          return row(
            slot.number < 0 ? "–" : String(slot.number),
            state,
            prompt,
            count(slot.tokens),
            slot.tps ? rate(slot.tps) : "–",
          );
        }),
      );
    },
  };
}

export function memory() {
  const body = node("tbody", {});
  const root = section("Memory", table(body));
  return {
    root,
    show({ memory: told }) {
      root.hidden = false;
      const rows = [
        ["This process", bytes(told.process)],
        ["Available on the machine", `${bytes(told.available)} of ${bytes(told.total)}`],
        ["KV cache", bytes(told.kv)],
      ];
      if (told.gpu)
        rows.push([
          `VRAM of ${told.gpu}`,
          `${bytes(told.vram_taken)} of ${bytes(told.vram_total)}`,
        ]);
      if (told.swapped) rows.push(["Swapped out", bytes(told.swapped)]);
      fill(body, ...rows.map(([name, value]) => row(name, value)));
    },
  };
}

export function plan() {
  const list = node("dl", { class: "plan" });
  const notes = node("ul", { class: "notes" });
  const root = section(
    "Where it lies, and why",
    list,
    node("details", {}, node("summary", {}, "All choices"), notes),
  );
  let key = "";
  return {
    root,
    show({ plan: told }) {
      root.hidden = false;
      if (key === (key = JSON.stringify(told))) return;
      list.replaceChildren(
        ...told.rows.map((one) =>
          node(
            "div",
            {},
            node("dt", {}, node("i", { class: `swatch tier-${one.tier}` }), one.name),
            node(
              "dd",
              {},
              node(
                "span",
                { class: "amount" },
                `${bytes(one.bytes)} ${one.tier === "disk" ? "on disk" : `in ${TIERS[one.tier] ?? one.tier}`}${one.device.startsWith("cuda") ? ` of ${one.device}` : ""}`,
              ),
              node("span", { class: "quiet-text" }, one.why),
            ),
          ),
        ),
      );
      notes.replaceChildren(...told.notes.map((line) => node("li", {}, line)));
    },
  };
}

export function off() {
  const list = node("dl", { class: "plan" });
  const root = section("Off, and why", list);
  return {
    root,
    show({ off: told }) {
      root.hidden = !told.length;
      fill(
        list,
        ...told.map(({ what, why }) => node("div", {}, node("dt", {}, what), node("dd", {}, why))),
      );
    },
  };
}
