// The experts of every layer as a map: how hot each is, where it lies, whether it was missed.

import { node, say } from "./dom.js";
import { count, digits, percent } from "./figures.js";

const LABELS = 26; // CSS pixels left of the cells, for layer numbers
const RATES = 30; // right of them, for hits
const ABOVE = 5;
const STEPS = 48; // colours of a scale
const HOTTEST = 8; // uses of the average expert, from which on a cell is as warm as can be
const PLACES = ["home", "slots", "vram", "missed"];

// What the server sends, decoded. before: the same a moment ago.
export function readExperts(told, before) {
  if (!told?.uses) return before ?? null;
  const { layers, per_layer: n } = told;
  const raw = decoded(told.uses);
  const uses = told.width === 16 ? new Uint16Array(raw.buffer) : new Uint32Array(raw.buffer);
  const vram = told.vram && decoded(told.vram);
  const slots = told.slots && decoded(told.slots);
  const stride = Math.ceil(n / 8);
  const has = (bits, row, expert) =>
    bits && (bits[row * stride + (expert >> 3)] >> (7 - (expert & 7))) & 1;
  const place = new Uint8Array(uses.length);
  const old = before && before.uses.length === uses.length ? before.uses : null;
  for (let row = 0; row < layers.length; row += 1) {
    for (let expert = 0; expert < n; expert += 1) {
      const at = row * n + expert;
      if (has(vram, row, expert)) place[at] = 2;
      else if (has(slots, row, expert)) place[at] = 1;
      else if ((vram || slots) && old && uses[at] > old[at]) place[at] = 3;
    }
  }
  const total = uses.reduce((sum, one) => sum + one, 0);
  return {
    ...told,
    uses,
    place,
    total,
    mean: total / Math.max(1, uses.length),
    has_slots: Boolean(vram || slots),
  };
}

function decoded(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

export class HeatMap {
  constructor() {
    this.canvas = node("canvas", { class: "heat", role: "img" });
    this.legend = node("ul", { class: "legend" });
    this.told = node("p", { class: "told" }, "");
    this.root = node("div", { class: "heat-map" }, this.canvas, this.legend, this.told);
    this.canvas.addEventListener("pointermove", (event) => this.tell(event));
    this.canvas.addEventListener("pointerleave", () => say(this.told, this.summary ?? ""));
    new ResizeObserver(() => this.draw()).observe(this.root);
  }

  show(experts) {
    this.experts = experts;
    this.draw();
  }

  repaint() {
    this.colours = null;
    this.draw();
  }

  draw() {
    const { experts, canvas } = this;
    const width = this.root.clientWidth;
    if (!experts || !width) return;
    this.colours ??= scales(this.root);
    const { layers, per_layer: n } = experts;
    const dots = devicePixelRatio || 1;
    const right = experts.has_slots ? RATES : 0;
    const room = width - LABELS - right;
    const bins = Math.min(n, Math.floor(room * dots));
    const cell = room / bins;
    const height = Math.max(layers.length > 30 ? 6 : 12, Math.min(16, cell));
    const edge = (bin) => LABELS + Math.round(bin * cell * dots) / dots;
    Object.assign(this, { cell, bins, height });
    const whole = layers.length * height + 2 * ABOVE;
    canvas.width = width * dots;
    canvas.height = whole * dots;
    canvas.style.height = `${whole}px`;
    const pen = canvas.getContext("2d");
    pen.scale(dots, dots);
    pen.translate(0, ABOVE);
    const gap = cell >= 4 ? 1 : 0;
    const line = height >= 8 ? 1 : 0.5;
    layers.forEach((_, row) => {
      for (let bin = 0; bin < bins; bin += 1) {
        pen.fillStyle = this.colourOf(this.hottest(row, bin));
        pen.fillRect(edge(bin), row * height, edge(bin + 1) - edge(bin) - gap, height - line);
      }
    });
    this.drawEdges(pen, LABELS + room);
    this.showLegend();
    this.summary = summaryOf(experts);
    canvas.setAttribute("aria-label", this.summary);
    say(this.told, this.summary);
  }

  // The cell of several experts is its hottest one's.
  hottest(row, bin) {
    const { uses, per_layer: n } = this.experts;
    const first = Math.floor((bin * n) / this.bins);
    const end = Math.max(first + 1, Math.floor(((bin + 1) * n) / this.bins));
    let best = row * n + first;
    for (let at = best + 1; at < row * n + end; at += 1) if (uses[at] > uses[best]) best = at;
    return best;
  }

  colourOf(at) {
    const { uses, place, mean, has_slots } = this.experts;
    const heat = mean ? Math.log2(1 + uses[at] / mean) / Math.log2(1 + HOTTEST) : 0;
    return this.colours[has_slots ? PLACES[place[at]] : "plain"][
      Math.min(STEPS - 1, Math.round(heat * (STEPS - 1)))
    ];
  }

  drawEdges(pen, end) {
    const { experts, height } = this;
    const { layers, hits, misses } = experts;
    pen.font = "10px system-ui, sans-serif";
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    const every = Math.ceil(12 / height) * (layers.length > 30 ? 5 : 1);
    layers.forEach((layer, row) => {
      const middle = row * height + height / 2;
      pen.fillStyle = this.colours.text;
      if (row % every === 0) pen.fillText(layer, LABELS - 6, middle);
      if (!experts.has_slots) return;
      const asked = hits[row] + misses[row];
      pen.fillStyle = this.colours.line;
      pen.fillRect(end + 6, row * height, RATES - 8, height - 1);
      pen.fillStyle = this.colours.text;
      pen.fillRect(
        end + 6,
        row * height,
        asked ? ((RATES - 8) * hits[row]) / asked : 0,
        height - 1,
      );
    });
  }

  tell(event) {
    const { experts, cell, bins, height } = this;
    if (!experts) return;
    const bin = Math.floor((event.offsetX - LABELS) / cell);
    const row = Math.floor((event.offsetY - ABOVE) / height);
    if (bin < 0 || bin >= bins || row < 0 || row >= experts.layers.length)
      return say(this.told, this.summary);
    const at = this.hottest(row, bin);
    const times = experts.mean ? digits(experts.uses[at] / experts.mean) : 0;
    say(
      this.told,
      `Layer ${experts.layers[row]}, expert ${at % experts.per_layer}: asked for ${count(experts.uses[at])} times, ${times} × the average; ${wordsOf(experts, at)}`,
    );
  }

  showLegend() {
    const { experts } = this;
    const key = `${experts.has_slots} ${Boolean(experts.vram)} ${Boolean(experts.slots)}`;
    if (key === this.legendKey) return;
    this.legendKey = key;
    const entry = (place, text) =>
      node("li", {}, node("span", { class: `swatch heat-${place}` }), text);
    const entries = [
      entry(
        experts.has_slots ? "home" : "plain",
        experts.has_slots ? `on ${homeOf(experts)}` : `in ${homeOf(experts)}`,
      ),
    ];
    if (experts.slots) entries.push(entry("slots", "in a RAM slot"));
    if (experts.vram) entries.push(entry("vram", "in VRAM"));
    if (experts.has_slots) entries.push(entry("missed", "missed just now"));
    this.legend.replaceChildren(
      ...entries,
      node(
        "li",
        { class: "quiet-text" },
        `A row is a layer, a cell an expert; the stronger its colour, the more it was asked for.${experts.has_slots ? ` Bars: share found in ${fastest(experts)}.` : ""}`,
      ),
    );
  }
}

const homeOf = ({ home }) =>
  ({ disk: "disk", ram: "RAM", hugepages: "RAM", mmap: "RAM", vram: "VRAM" })[home] ?? home;

// What hits are counted of.
const fastest = ({ vram }) => (vram ? "VRAM" : "RAM slots");

function wordsOf(experts, at) {
  const home = homeOf(experts);
  return [
    home === "disk" ? "on disk" : `in ${home}`,
    "in a RAM slot",
    "in VRAM",
    "missed just now",
  ][experts.place[at]];
}

function summaryOf(experts) {
  if (!experts.total)
    return `${experts.layers.length} layers of ${experts.per_layer} experts; none was asked for yet.`;
  const hits = experts.hits.reduce((a, b) => a + b, 0);
  const asked = hits + experts.misses.reduce((a, b) => a + b, 0);
  const shape = `${experts.layers.length} layers of ${experts.per_layer} experts`;
  if (!experts.has_slots || !asked) return `${shape}.`;
  return `${shape}; ${percent(hits / asked)} of those asked for lay in ${fastest(experts)}.`;
}

// For screen readers and whoever wants figures: a row per layer.
export function expertTable(experts) {
  const n = experts.per_layer;
  const rows = experts.layers.map((layer, row) => {
    const own = Array.from(experts.uses.subarray(row * n, (row + 1) * n), (uses, expert) => ({
      uses,
      expert,
    }));
    const hot = own
      .sort((a, b) => b.uses - a.uses)
      .slice(0, 4)
      .filter((one) => one.uses)
      .map((one) => `${one.expert} (${count(one.uses)})`)
      .join(", ");
    const asked = experts.hits[row] + experts.misses[row];
    const places = [2, 1].map((code) =>
      experts.place.subarray(row * n, (row + 1) * n).reduce((sum, one) => sum + (one === code), 0),
    );
    const cells = [
      hot || "none",
      ...(experts.vram ? [count(places[0])] : []),
      ...(experts.slots ? [count(places[1])] : []),
      ...(experts.has_slots
        ? [asked ? percent(experts.hits[row] / asked) : "–", count(experts.misses[row])]
        : []),
    ];
    return node(
      "tr",
      {},
      node("th", { scope: "row" }, String(layer)),
      ...cells.map((text) => node("td", {}, text)),
    );
  });
  const heads = [
    "Layer",
    "Hottest experts (uses)",
    ...(experts.vram ? ["In VRAM"] : []),
    ...(experts.slots ? ["In RAM slots"] : []),
    ...(experts.has_slots ? ["Hits", "Misses"] : []),
  ];
  return node(
    "table",
    { class: "figures-table" },
    node("thead", {}, node("tr", {}, ...heads.map((text) => node("th", { scope: "col" }, text)))),
    node("tbody", {}, ...rows),
  );
}

function scales(root) {
  const style = getComputedStyle(root);
  const colour = (name) => rgb(style.getPropertyValue(name).trim());
  const cold = colour("--heat-cold");
  const scale = (name) => {
    const warm = colour(name);
    return Array.from(
      { length: STEPS },
      (_, i) =>
        `rgb(${cold.map((c, k) => Math.round(c + (warm[k] - c) * (0.06 + (0.94 * i) / (STEPS - 1)))).join(" ")})`,
    );
  };
  const missed = `rgb(${colour("--heat-missed").join(" ")})`;
  return {
    plain: scale("--heat-plain"),
    home: scale("--heat-home"),
    slots: scale("--heat-slots"),
    vram: scale("--heat-vram"),
    missed: Array(STEPS).fill(missed),
    text: `rgb(${colour("--heat-text").join(" ")})`,
    line: `rgb(${colour("--heat-line").join(" ")})`,
  };
}

// A colour as the browser computes it, light-dark() and all.
function rgb(text) {
  const probe = node("i", { hidden: true });
  probe.style.color = text;
  document.body.append(probe);
  const found = getComputedStyle(probe)
    .color.match(/[\d.]+/g)
    .slice(0, 3)
    .map(Number);
  probe.remove();
  return found;
}
