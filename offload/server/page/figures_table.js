// A part of the machine panel, and the tables of figures in it.

import { node } from "./dom.js";

// Tiers as people call them.
export const TIERS = {
  vram: "VRAM",
  slots: "RAM slots",
  ram: "RAM",
  hugepages: "RAM",
  mmap: "RAM (mapped file)",
  disk: "Disk",
};

export function section(title, ...children) {
  return node("section", { class: "part" }, node("h3", {}, title), ...children);
}

// A row: words first, then numbers.
export const row = (name, ...cells) =>
  node("tr", {}, node("th", { scope: "row" }, name), ...cells.map((cell) => node("td", {}, cell)));
export const head = (...names) =>
  node("thead", {}, node("tr", {}, ...names.map((name) => node("th", { scope: "col" }, name))));

export const table = (...children) => node("table", { class: "figures-table" }, ...children);
