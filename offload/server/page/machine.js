// The panel beside the chat: asks the server once a second while somebody looks.

import { machine } from "./api.js";
import { $, node, say } from "./dom.js";
import { count, duration } from "./figures.js";
import { readExperts } from "./heatmap.js";
import { History } from "./history.js";
import { sections } from "./sections.js";

const EVERY = 1000; // ms

export class MachinePanel {
  // lost(): the server has just gone.
  constructor(lost) {
    this.lost = lost;
    this.history = new History();
    this.is_shown = false;
    this.seen = -1;
    this.parts = sections();
    this.status = node("p", { class: "quiet-text" }, "Asking the server");
    $("machine-body").append(this.status, ...this.parts.map((part) => part.root));
    for (const part of this.parts) part.root.hidden = true;
    document.addEventListener("visibilitychange", () => this.look());
  }

  show(is_shown) {
    this.is_shown = is_shown;
    this.look();
  }

  repaint() {
    for (const part of this.parts) part.repaint?.();
  }

  async look() {
    clearTimeout(this.timer);
    if (!this.is_shown || document.hidden || this.isAsking) return;
    this.isAsking = true;
    try {
      this.take(await machine(this.seen));
    } catch (error) {
      this.lose(error);
    }
    this.isAsking = false;
    this.timer = setTimeout(() => this.look(), EVERY);
  }

  // What was seen last stays, and looks like it.
  lose(error) {
    const [told] = error.message.split(";"); // what follows is advice to programs
    const why = error.status === 401 ? "The server asks for an API key." : told;
    say(this.status, this.history.samples.length ? `${why} Below is what it told last.` : why);
    if (error.is_gone && !this.isLost) this.lost();
    this.isLost = true;
    $("machine-body").classList.add("is-stale");
    this.label(null);
  }

  label(text) {
    const toggle = $("machine-toggle");
    say($("machine-label"), text ?? "Machine");
    if (text) toggle.setAttribute("aria-label", `Machine: ${text}`);
    else toggle.removeAttribute("aria-label");
  }

  take(told) {
    this.isLost = false;
    $("machine-body").classList.remove("is-stale");
    this.history.add(told);
    const before = told.experts?.began === this.experts?.began ? this.experts : null;
    this.experts = told.experts && readExperts(told.experts, before);
    if (this.experts) this.seen = told.experts.asked;
    const { model } = told;
    say($("model-name"), model.name);
    say(
      this.status,
      `${model.layers} layers, ${model.experts ? `${model.experts_per_token} of ${model.experts} experts per token, ` : ""}context ${count(model.context)} tokens. Up for ${duration(Math.round(told.uptime))}.`,
    );
    const state = { ...told, experts: this.experts, history: this.history };
    for (const part of this.parts) part.show(state);
    const { running, waiting, tps } = this.history.now(told);
    this.label(running ? `${tps} t/s${waiting ? `, ${waiting} waiting` : ""}` : null);
  }
}
