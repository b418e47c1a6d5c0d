// Whether the server is there and its model loaded; a line while it is not.

import { health, Refusal } from "./api.js";
import { $, node, say, toggle } from "./dom.js";
import { bytes, percent } from "./figures.js";

const BUSY = 500; // ms between two looks while the model loads
const AWAY = 2000; // while nobody answers
const CALM = 10_000; // while all is well

export class Connection {
  // ready(is_ready): whether messages can be sent.
  constructor(ready) {
    this.ready = ready;
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.look();
    });
  }

  begin() {
    this.look();
  }

  async look() {
    clearTimeout(this.timer);
    const wait = await this.ask();
    clearTimeout(this.timer);
    if (!document.hidden) this.timer = setTimeout(() => this.look(), wait);
  }

  async ask() {
    try {
      const told = await health();
      const is_ready = told.status === "ok";
      this.ready(is_ready);
      this.show(is_ready ? null : loadingText(told), told.progress);
      return is_ready ? CALM : BUSY;
    } catch (error) {
      const is_gone = error instanceof Refusal && error.is_gone;
      this.ready(!is_gone); // it refuses only this question
      this.show(is_gone ? "The server does not answer. Trying again every two seconds." : null);
      return is_gone ? AWAY : CALM;
    }
  }

  show(text, progress) {
    const banner = $("banner");
    if (banner.hidden === Boolean(text)) say($("announcer"), text ?? "Ready");
    toggle(banner, Boolean(text));
    if (!text) return banner.replaceChildren();
    if (!this.line) this.line = node("span", {});
    if (!this.bar) this.bar = node("progress", { max: 1, aria: { label: "Loading" } });
    say(this.line, text);
    const share = shareOf(progress);
    if (share === null) banner.replaceChildren(this.line);
    else {
      this.bar.value = share;
      if (this.bar.parentNode !== banner) banner.replaceChildren(this.line, this.bar);
    }
  }
}

const shareOf = (progress) => (progress?.total ? progress.done / progress.total : null);

const PHASES = {
  download: "downloading",
  check: "checking the file",
  copy: "copying the weights",
  pack: "packing the experts",
  pin: "pinning memory",
  compile: "compiling kernels",
  measure: "measuring this machine",
};

function loadingText({ status, progress, message }) {
  if (!progress) return message ?? `The server is not ready: ${status}.`;
  const { phase, done, total } = progress;
  const of = ["compile", "prompt", "measure"].includes(phase)
    ? `${done} of ${total}`
    : `${bytes(done)} of ${bytes(total)}`;
  return `Loading the model: ${PHASES[phase] ?? phase}, ${of}${total ? ` (${percent(done / total)})` : ""}`;
}
