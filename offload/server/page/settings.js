// What the user wants of every answer; kept in the browser, the same in all tabs.

import { $, node } from "./dom.js";
import { keep, recall } from "./kept.js";

const KEY = "kimi-offload settings";
const DEFAULTS = {
  system: "",
  thinking: true,
  preserveThinking: false,
  budget: "",
  temperature: "",
  topP: "",
  maxTokens: "",
  seed: "",
  dry: "",
  stopLoops: true,
  apiKey: "",
  theme: "",
};

function parsed(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

class Settings extends EventTarget {
  constructor() {
    super();
    this.thinkingMode = null; // of the model: "none" | "always" | "switch"; null: not known yet
    this.read();
    addEventListener("storage", (event) => {
      if (event.key !== KEY && event.key !== null) return; // null: all was cleared
      this.read();
      this.dispatchEvent(new Event("change"));
    });
  }

  // What is there and of the right kind; anything may have written it.
  read() {
    this.values = { ...DEFAULTS };
    const told = parsed(recall("localStorage", KEY));
    for (const [name, value] of Object.entries(DEFAULTS))
      if (typeof told[name] === typeof value) this.values[name] = told[name];
  }

  set(changes) {
    Object.assign(this.values, changes);
    keep("localStorage", KEY, JSON.stringify(this.values));
    this.dispatchEvent(new Event("change"));
  }

  setThinkingMode(mode) {
    this.thinkingMode = mode;
    this.dispatchEvent(new Event("change"));
  }

  get canSwitchThinking() {
    return this.thinkingMode === null || this.thinkingMode === "switch";
  }

  get thinks() {
    return this.canSwitchThinking ? this.values.thinking : this.thinkingMode === "always";
  }

  // The fields of a request; an empty box leaves the choice to the model.
  body() {
    const {
      thinking,
      preserveThinking,
      budget,
      temperature,
      topP,
      maxTokens,
      seed,
      dry,
      stopLoops,
    } = this.values;
    const number = (text) => (text === "" ? undefined : Number(text));
    return {
      chat_template_kwargs: {
        ...(this.canSwitchThinking && { thinking }),
        ...(preserveThinking && { preserve_thinking: true }),
      },
      thinking_budget: this.thinks ? number(budget) : undefined,
      temperature: number(temperature),
      top_p: number(topP),
      max_tokens: number(maxTokens),
      seed: number(seed),
      dry_multiplier: number(dry),
      stop_loops: stopLoops || undefined,
    };
  }
}

export const settings = new Settings();

const FIELDS = [
  { group: "Answers" },
  { name: "system", label: "System prompt", kind: "text", hint: "Sent before every conversation." },
  {
    name: "thinking",
    label: "Think first",
    kind: "switch",
    hint: "The model reasons before it answers.",
  },
  {
    name: "preserveThinking",
    label: "Keep earlier thinking",
    kind: "switch",
    hint: "Reasoning of earlier turns stays in the prompt.",
  },
  {
    name: "budget",
    label: "Thinking budget",
    kind: "number",
    min: 0,
    step: 1,
    unit: "tokens",
    hint: "Then it must answer.",
  },
  {
    name: "maxTokens",
    label: "Longest answer",
    kind: "number",
    min: 1,
    step: 1,
    unit: "tokens",
    hint: "Thinking counts.",
  },
  {
    name: "stopLoops",
    label: "Stop loops",
    kind: "switch",
    hint: "An answer that goes in circles ends.",
  },
  { group: "Sampling" },
  { name: "temperature", label: "Temperature", kind: "number", min: 0, max: 5, step: 0.01 },
  { name: "topP", label: "Top p", kind: "number", min: 0.01, max: 1, step: 0.01 },
  {
    name: "dry",
    label: "DRY strength",
    kind: "number",
    min: 0,
    max: 5,
    step: 0.01,
    hint: "Against repeated phrases; 0.8 is usual.",
  },
  {
    name: "seed",
    label: "Seed",
    kind: "number",
    min: 0,
    step: 1,
    hint: "The same seed, the same answer.",
  },
  { group: "Access" },
  {
    name: "apiKey",
    label: "API key",
    kind: "password",
    hint: "Only where the server asks for one; kept in this browser.",
  },
];

export function openSettings(focus = "system") {
  const dialog = $("settings");
  dialog.replaceChildren(form(dialog));
  dialog.showModal();
  dialog.querySelector(`#set-${focus}`)?.focus();
}

function form(dialog) {
  const close = node("button", {
    type: "button",
    class: "icon",
    icon: "close",
    aria: { label: "Close" },
    onclick: () => dialog.close(),
  });
  return node(
    "form",
    { method: "dialog" },
    node("div", { class: "dialog-head" }, node("h2", { id: "settings-title" }, "Settings"), close),
    node(
      "div",
      { class: "fields" },
      ...FIELDS.map((field) => (field.group ? node("h3", {}, field.group) : row(field))),
    ),
    node(
      "div",
      { class: "dialog-foot" },
      node(
        "button",
        {
          type: "button",
          class: "quiet",
          onclick: () => {
            settings.set({
              ...DEFAULTS,
              apiKey: settings.values.apiKey,
              theme: settings.values.theme,
            });
            dialog.replaceChildren(form(dialog));
          },
        },
        "Reset",
      ),
      node("button", { class: "primary" }, "Done"),
    ),
  );
}

function row(field) {
  const id = `set-${field.name}`;
  const hint = field.hint && node("span", { class: "field-hint", id: `${id}-hint` }, field.hint);
  const described = field.hint ? { describedby: `${id}-hint` } : {};
  const label = node(
    "label",
    { for: id },
    field.label,
    field.unit ? node("span", { class: "unit" }, ` (${field.unit})`) : null,
  );
  return node(
    "div",
    { class: `field ${field.kind}` },
    node("div", { class: "field-text" }, label, hint ?? null),
    input(field, id, described),
  );
}

function input(field, id, aria) {
  const value = settings.values[field.name];
  if (field.kind === "text") {
    const area = node("textarea", {
      id,
      rows: 3,
      aria,
      onchange: () => settings.set({ [field.name]: area.value }),
    });
    area.value = value;
    return area;
  }
  if (field.kind === "switch") {
    const box = node("input", {
      id,
      type: "checkbox",
      role: "switch",
      disabled: field.name === "thinking" && !settings.canSwitchThinking,
      aria,
      onchange: () => settings.set({ [field.name]: box.checked }),
    });
    box.checked = field.name === "thinking" ? settings.thinks : value;
    return box;
  }
  const { min, max, step } = field;
  const box = node("input", {
    id,
    type: field.kind,
    min,
    max,
    step,
    aria,
    autocomplete: "off",
    placeholder: field.kind === "number" ? "default" : "none",
    onchange: () =>
      box.checkValidity() ? settings.set({ [field.name]: box.value.trim() }) : box.reportValidity(),
  });
  box.value = value;
  return box;
}
