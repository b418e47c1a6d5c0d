// What the counters did in the last minute.

import { rate } from "./figures.js";

const KEPT = 61; // samples
const WINDOW = 3; // seconds, for what is said to be now

export class History {
  constructor() {
    this.samples = [];
    this.perToken = null; // bytes by tier of a decoded token, when last known
    this.perSecond = null; // bytes by tier
  }

  add(told) {
    const sample = {
      at: told.uptime,
      decoded: told.tokens.decoded,
      prompt: told.tokens.prompt,
      bytes: Object.fromEntries(told.tiers.map((tier) => [tier.tier, tier.bytes])),
    };
    const last = this.samples.at(-1);
    if (last && (sample.at <= last.at || sample.decoded < last.decoded)) this.samples = []; // another run of the server
    this.samples.push(sample);
    if (this.samples.length > KEPT) this.samples.shift();
    const first = this.first();
    const [seconds, decoded, prompt] = [
      sample.at - first.at,
      sample.decoded - first.decoded,
      sample.prompt - first.prompt,
    ];
    if (!decoded || seconds <= 0) return;
    const moved = Object.fromEntries(
      Object.entries(sample.bytes).map(([tier, n]) => [tier, n - (first.bytes[tier] ?? 0)]),
    );
    const over = (n) =>
      Object.fromEntries(Object.entries(moved).map(([tier, bytes]) => [tier, bytes / n]));
    this.perSecond = over(seconds);
    if (!prompt) this.perToken = over(decoded); // a prompt's tokens share what is read
  }

  first() {
    const now = this.samples.at(-1).at;
    return this.samples.find((sample) => sample.at >= now - WINDOW - 0.5);
  }

  // tokens per second between neighbours, oldest first.
  rates(name) {
    return this.samples.slice(1).map((sample, index) => {
      const before = this.samples[index];
      return (sample[name] - before[name]) / (sample.at - before.at);
    });
  }

  tps(name = "decoded") {
    const [last, first] = [this.samples.at(-1), this.first()];
    return last.at > first.at ? (last[name] - first[name]) / (last.at - first.at) : 0;
  }

  now({ slots }) {
    const waiting = slots.filter((slot) => slot.state === "queued").length;
    return { waiting, running: slots.length - waiting, tps: rate(this.tps()) };
  }
}
