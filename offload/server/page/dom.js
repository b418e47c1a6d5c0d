// Making elements: node("button", {class: "x", onclick: f, aria: {label: "y"}}, ...children).

export const $ = (id) => document.getElementById(id);

export function node(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "aria") {
      for (const [key, said] of Object.entries(value)) element.setAttribute(`aria-${key}`, said);
    } else if (name === "icon") element.prepend(icon(value));
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `/page/icons.svg#${name}`);
  svg.append(use);
  svg.classList.add("glyph");
  svg.setAttribute("aria-hidden", "true");
  return svg;
}

export function addIcons(root) {
  for (const element of root.querySelectorAll("[data-icon]"))
    element.prepend(icon(element.dataset.icon));
}

export function toggle(element, is_shown) {
  element.hidden = !is_shown;
}

// Text only if it differs: a screen reader and the layout are left alone.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// These children, and of them anew only what looks different: a selection in the others stays, and
// so does a button that is being pressed. What they do must not hang on when they were made.
export function fill(place, ...children) {
  children.forEach((child, index) => {
    const old = place.childNodes[index];
    if (!old) place.append(child);
    else if (!old.isEqualNode(child)) old.replaceWith(child);
  });
  while (place.childNodes.length > children.length) place.lastChild.remove();
}

let toastTimer = 0;
export function toast(text, action) {
  const place = $("toast");
  const button =
    action &&
    node(
      "button",
      {
        type: "button",
        class: "quiet",
        onclick: () => {
          place.replaceChildren();
          action.run();
        },
      },
      action.label,
    );
  place.replaceChildren(node("span", {}, text), ...(button ? [button] : []));
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => place.replaceChildren(), action ? 8000 : 3000);
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // no clipboard outside of https and localhost
    const area = node("textarea", { class: "hidden" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast("Copied");
}
