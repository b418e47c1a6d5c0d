// Wiring: who listens to whom, the keys, what fits the window.

import { props } from "./api.js";
import { $, addIcons, node, say, toast, toggle } from "./dom.js";
import { Chat } from "./chat.js";
import { newConversation } from "./conversation.js";
import { keep, recall } from "./kept.js";
import { MachinePanel } from "./machine.js";
import { openSettings, settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Connection } from "./connection.js";
import { Store } from "./store.js";

addIcons(document);

const store = new Store((id) => {
  sidebar.reload(id);
  chat.reload(id);
});
const sidebar = new Sidebar(store, {
  open: (conversation) => {
    open(conversation);
    closeSidebar();
  },
  gone: (conversation) => {
    chat.drop(conversation.id);
    if (chat.conversation.id === conversation.id) start();
  },
  renamed: (conversation) => {
    if (chat.conversation.id === conversation.id) {
      Object.assign(chat.conversation, { title: conversation.title, is_named: true });
      chat.render();
    }
  },
});
const chat = new Chat(store, {
  changed: (conversation) => {
    sidebar.put(conversation);
    if (conversation.id === chat.conversation.id) mark(conversation);
  },
  needsKey: () => openSettings("apiKey"),
});
const panel = new MachinePanel(() => connection.look());
let was_ready = false;
const connection = new Connection((is_ready) => {
  if (is_ready && !was_ready) learn(); // after a pause it may be another model
  was_ready = is_ready;
  $("send").disabled = !is_ready;
});

// What the model can do.
async function learn() {
  const { thinking } = await props().catch(() => ({})); // a key is needed: asked again when it comes
  settings.setThinkingMode(thinking ?? null);
}

function open(conversation) {
  chat.show(conversation);
  mark(conversation);
}

function start() {
  chat.show(newConversation());
  history.replaceState(null, "", location.pathname);
  sidebar.choose(null);
  closeSidebar();
  $("message").focus();
}

function mark(conversation) {
  if (location.hash !== `#${conversation.id}`)
    history.replaceState(null, "", `#${conversation.id}`);
  sidebar.choose(conversation.id);
}

// --- the message box ------------------------------------------------------------------------------

const box = $("message");
const grow = () => {
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight, innerHeight * 0.4)}px`;
};
box.addEventListener("input", grow);
box.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = box.value.trim();
  if (!text || chat.answering || $("send").disabled) return;
  box.value = "";
  grow();
  chat.send(text);
});
$("stop").addEventListener("click", () => {
  chat.stop();
  box.focus();
});
$("thinking").addEventListener("click", () =>
  settings.set({ thinking: !settings.values.thinking }),
);
const showSettings = () => {
  const chip = $("thinking");
  chip.setAttribute("aria-pressed", settings.thinks);
  chip.disabled = !settings.canSwitchThinking;
  chip.title = chip.disabled ? "This model always thinks" : "Reason before the answer";
  toggle(chip, settings.thinkingMode !== "none");
};
let key = settings.values.apiKey;
settings.addEventListener("change", () => {
  if (key !== (key = settings.values.apiKey)) learn();
});
settings.addEventListener("change", showSettings);
showSettings();

// --- keys and windows -----------------------------------------------------------------------------

const is_mac = /Mac|iPhone|iPad/.test(navigator.platform);
say($("new-key"), is_mac ? "⌘K" : "Ctrl K");
document.addEventListener("keydown", (event) => {
  if (
    (is_mac ? event.metaKey : event.ctrlKey) &&
    event.key.toLowerCase() === "k" &&
    !event.shiftKey &&
    !event.altKey
  ) {
    event.preventDefault();
    document.querySelectorAll("dialog[open]").forEach((dialog) => dialog.close());
    start();
  }
  if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
  if (event.target.id === "search" && event.target.value) return; // it is emptied
  if (document.body.classList.contains("with-sidebar")) closeSidebar();
  else if (chat.answering) chat.stop();
  else if (isNarrow() && !$("machine").hidden) showMachine(false);
});
$("new").addEventListener("click", start);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the conversation
  box.focus();
});

const narrow = matchMedia("(max-width: 1100px)");
const isNarrow = () => narrow.matches;
const phone = matchMedia("(max-width: 760px)");

// What is covered by the list or the panel cannot be reached by keys either.
function cover() {
  const has_list = isNarrow() && document.body.classList.contains("with-sidebar");
  const has_panel = phone.matches && !$("machine").hidden;
  for (const part of $("main").querySelectorAll(":scope > :not(h1)"))
    part.inert = has_list || has_panel;
  $("sidebar").inert = has_panel && !has_list;
  $("machine").inert = has_list;
}
phone.addEventListener("change", cover);
narrow.addEventListener("change", cover);

function closeSidebar() {
  if (!document.body.classList.contains("with-sidebar")) return;
  document.body.classList.remove("with-sidebar");
  cover();
  $("open-sidebar").focus();
}
$("open-sidebar").addEventListener("click", (event) => {
  event.stopPropagation();
  document.body.classList.add("with-sidebar");
  cover();
  $("new").focus();
});
$("close-sidebar").addEventListener("click", closeSidebar);
document.addEventListener("click", (event) => {
  if (!event.target.closest("#sidebar, dialog, #toast")) closeSidebar();
});

function showMachine(is_shown) {
  toggle($("machine"), is_shown);
  $("machine-toggle").setAttribute("aria-expanded", is_shown);
  document.body.classList.toggle("with-machine", is_shown);
  cover();
  panel.show(is_shown);
  if (isNarrow()) (is_shown ? $("close-machine") : $("machine-toggle")).focus();
  else keep("sessionStorage", "machine", is_shown ? "open" : "closed");
}
$("machine-toggle").addEventListener("click", () => showMachine($("machine").hidden));
$("close-machine").addEventListener("click", () => {
  showMachine(false);
  $("machine-toggle").focus();
});
if (!isNarrow() && recall("sessionStorage", "machine") !== "closed") showMachine(true);

// --- settings, theme, export ----------------------------------------------------------------------

$("open-settings").addEventListener("click", () => openSettings());
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}

const THEMES = ["", "light", "dark"];
const showTheme = () => {
  const { theme } = settings.values;
  document.documentElement.dataset.theme = theme;
  const name = `Theme: ${theme || "as the system"}`;
  $("theme").title = name;
  $("theme").setAttribute("aria-label", name);
  panel.repaint();
};
$("theme").addEventListener("click", () =>
  settings.set({ theme: THEMES[(THEMES.indexOf(settings.values.theme) + 1) % 3] }),
);
settings.addEventListener("change", showTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => panel.repaint());
showTheme();

function download(text, type, ending) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const name =
    chat.conversation.title
      .replace(/[^\p{L}\p{N}]+/gu, "-")
      .replace(/^-|-$/g, "")
      .slice(0, 50) || "conversation";
  node("a", { href: address, download: `${name}.${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
$("export-md").addEventListener("click", () => download(chat.markdown(), "text/markdown", "md"));
$("export-json").addEventListener("click", () => download(chat.json(), "application/json", "json"));

// --- begin ----------------------------------------------------------------------------------------

await sidebar.load();
if (!store.is_kept) toast("This browser keeps no data: conversations end with the page.");
const wanted = sidebar.all.get(location.hash.slice(1));
if (wanted) open(wanted);
else start();
addEventListener("hashchange", () => {
  const one = sidebar.all.get(location.hash.slice(1));
  if (one) open(one);
});
connection.begin();
