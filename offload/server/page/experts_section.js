// The heat map in the panel, large in a dialog, and as a table.

import { $, node } from "./dom.js";
import { section } from "./figures_table.js";
import { expertTable, HeatMap } from "./heatmap.js";

export function experts() {
  const [map, large] = [new HeatMap(), new HeatMap()];
  const place = node("div", { class: "table-place" });
  const flip = node(
    "button",
    { type: "button", class: "quiet small", aria: { expanded: false } },
    "As a table",
  );
  const enlarge = node(
    "button",
    { type: "button", class: "quiet small", icon: "expand" },
    "Enlarge",
  );
  const root = section(
    "Experts, by layer",
    map.root,
    node("div", { class: "part-acts" }, flip, enlarge),
    place,
  );
  const dialog = $("map-dialog");
  let latest = null;
  const fill = () =>
    place.replaceChildren(
      ...(flip.getAttribute("aria-expanded") === "true" && latest ? [expertTable(latest)] : []),
    );
  flip.addEventListener("click", () => {
    flip.setAttribute("aria-expanded", flip.getAttribute("aria-expanded") !== "true");
    fill();
  });
  enlarge.addEventListener("click", () => {
    const close = node("button", {
      type: "button",
      class: "icon",
      icon: "close",
      aria: { label: "Close" },
      onclick: () => dialog.close(),
    });
    dialog.replaceChildren(
      node(
        "div",
        { class: "dialog-head" },
        node("h2", { id: "map-title" }, "Experts, by layer"),
        close,
      ),
      large.root,
    );
    dialog.showModal();
    large.show(latest);
  });
  return {
    root,
    repaint() {
      map.repaint();
      large.repaint();
    },
    show({ experts: told }) {
      root.hidden = !told;
      if (!told || told === latest) return;
      latest = told;
      map.show(told);
      if (dialog.open) large.show(told);
      fill();
    },
  };
}
