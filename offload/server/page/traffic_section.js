// What moves now: tokens, bytes from each tier, and how long the parts of a token take.

import { fill, node, say, toggle } from "./dom.js";
import { bytes, count, rate } from "./figures.js";
import { head, row, section, table, TIERS } from "./figures_table.js";

export function speed() {
  const [now, prompts, busy] = [node("strong", {}), node("strong", {}), node("strong", {})];
  const waits = node("span", {});
  const line = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  line.setAttribute("viewBox", "0 0 60 20");
  line.setAttribute("preserveAspectRatio", "none");
  line.setAttribute("class", "spark");
  line.setAttribute("role", "img");
  const [area, stroke] = ["area", "stroke"].map((name) => {
    const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
    shape.setAttribute("class", `spark-${name}`);
    line.append(shape);
    return shape;
  });
  const figure = (value, label) => node("div", {}, value, node("span", {}, label));
  const root = section(
    "Now, over 3 seconds",
    node(
      "div",
      { class: "big-figures" },
      figure(now, "tokens / s"),
      figure(prompts, "prompt tokens / s"),
      node("div", {}, busy, waits),
    ),
    line,
  );
  return {
    root,
    show({ history, slots, parallel }) {
      root.hidden = false;
      const { running, waiting } = history.now({ slots });
      say(now, rate(history.tps()));
      say(prompts, rate(history.tps("prompt")));
      say(busy, `${running} / ${parallel}`);
      say(waits, waiting ? `running, ${count(waiting)} waiting` : "running");
      const values = history.rates("decoded");
      const most = Math.max(...values, 1e-9);
      const points = values.map(
        (value, index) =>
          `${60 - values.length + 1 + index},${(19 - (18 * value) / most).toFixed(2)}`,
      );
      stroke.setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
      area.setAttribute(
        "d",
        points.length > 1 ? `M${points.join("L")}L60,20L${61 - values.length},20Z` : "",
      );
      line.setAttribute(
        "aria-label",
        `Tokens per second in the last minute: ${rate(Math.max(...values, 0))} at most`,
      );
    },
  };
}

export function tiers() {
  const bars = node("div", { class: "tier-bars" });
  const body = node("tbody", {});
  const note = node("p", { class: "quiet-text" });
  const root = section(
    "Bytes of a token, by tier",
    bars,
    table(head("Tier", "Predicted", "Measured", "Now"), body),
    note,
  );
  return {
    root,
    show({ tiers: told, history }) {
      root.hidden = false;
      const latest =
        told.every((tier) => tier.latest !== null) &&
        Object.fromEntries(told.map((tier) => [tier.tier, tier.latest]));
      const measured = history.perToken ?? (latest || null);
      const total = (values) => values.reduce((sum, value) => sum + value, 0);
      const predicted = told.map((tier) => tier.predicted);
      const found = told.map((tier) => measured?.[tier.tier] ?? 0);
      const most = Math.max(total(predicted), total(found), 1);
      fill(
        bars,
        ...[
          ["Predicted", predicted],
          ["Measured", measured ? found : []],
        ].map(([name, values]) => {
          const bar = node("div", { class: "bar-track" });
          values.forEach((value, index) => {
            const piece = node("span", { class: `tier-${told[index].tier}` });
            piece.style.width = `${(100 * value) / most}%`;
            bar.append(piece);
          });
          return node(
            "div",
            { class: "bar-row", aria: { hidden: true } },
            node("span", {}, name),
            bar,
          );
        }),
      );
      const sum = row(
        "Sum",
        bytes(total(predicted)),
        measured ? bytes(total(found)) : "–",
        history.perSecond && history.tps()
          ? `${bytes(total(Object.values(history.perSecond)))}/s`
          : "–",
      );
      sum.classList.add("sum");
      fill(
        body,
        ...told.map((tier) => {
          const name = node(
            "span",
            { class: "tier-name" },
            node("i", { class: `swatch tier-${tier.tier}` }),
            TIERS[tier.tier] ?? tier.tier,
          );
          const flow =
            history.perSecond && history.tps()
              ? `${bytes(history.perSecond[tier.tier] ?? 0)}/s`
              : "–";
          return row(
            name,
            bytes(tier.predicted),
            measured ? bytes(measured[tier.tier] ?? 0) : "–",
            flow,
          );
        }),
        sum,
      );
      say(
        note,
        measured
          ? "Measured while answers were decoded; those that run together share what is read."
          : "Measured as soon as an answer is decoded for a second without a prompt beside it.",
      );
    },
  };
}

// The name of a column that has bars, with their colour.
const keyed = (name) => node("span", {}, node("i", { class: `key ${name.toLowerCase()}` }), name);

export function check() {
  const body = node("tbody", {});
  const totals = node("p", { class: "claim" });
  const note = node("p", { class: "quiet-text" });
  const reason = node("p", { class: "reason" });
  const figures = table(head("ms per token", keyed("Predicted"), keyed("Measured"), "As bars"), body);
  const root = section("Predicted against measured", totals, figures, reason, note);
  return {
    root,
    show({ check: told }) {
      root.hidden = false;
      const { predicted_tps: predicted, measured_tps: measured, parts } = told;
      const claims = [
        predicted && `${rate(predicted)} t/s predicted`,
        measured && `${rate(measured)} t/s measured`,
      ].filter(Boolean);
      say(totals, claims.join(", "));
      toggle(totals, claims.length);
      toggle(figures, parts.length);
      const most = Math.max(
        ...parts.map((part) => Math.max(part.predicted ?? 0, part.measured ?? 0)),
        1e-12,
      );
      fill(
        body,
        ...parts.map((part) => {
          const bar = node("div", { class: "twin", aria: { hidden: true } });
          for (const name of ["predicted", "measured"]) {
            const piece = node("span", { class: name });
            piece.style.width = `${(100 * (part[name] ?? 0)) / most}%`;
            bar.append(piece);
          }
          const ms = (seconds) => (seconds === null ? "–" : rate(1000 * seconds));
          return row(part.part, ms(part.predicted), ms(part.measured), bar);
        }),
      );
      const compared =
        told.compared_tokens && `measured of an answer of ${count(told.compared_tokens)} tokens`;
      say(reason, told.why ?? "");
      toggle(reason, told.why);
      say(note, [told.missing, compared, told.source].filter(Boolean).join("; "));
    },
  };
}
