// What the counters did in the last minute.

import { rate } from "./figures.js";

const KEPT = 61; // samples
const WINDOW = 3; // seconds, for what is said to be now

// Bytes by tier from one sample to a later one, over n.
const moved = (first, last, n) =>
  Object.fromEntries(
    Object.entries(last.bytes).map(([tier, bytes]) => [tier, (bytes - (first.bytes[tier] ?? 0)) / n]),
  );

export class History {
  constructor() {
    this.samples = [];
    this.perToken = null; // bytes by tier of a decoded token, when last known
    this.perSecond = null; // bytes by tier
  }

  add(told) {
    const sample = {
      at: told.uptime,
      is_reading: told.slots.some((slot) => slot.state === "reading"),
      decoded: told.tokens.decoded,
      prompt: told.tokens.prompt,
      bytes: Object.fromEntries(told.tiers.map((tier) => [tier.tier, tier.bytes])),
    };
    const last = this.samples.at(-1);
    if (last && (sample.at <= last.at || sample.decoded < last.decoded)) this.samples = []; // another run of the server
    this.samples.push(sample);
    if (this.samples.length > KEPT) this.samples.shift();
    const first = this.first();
    if (sample.decoded === first.decoded || sample.at <= first.at) return;
    this.perSecond = moved(first, sample, sample.at - first.at);
    this.perToken = this.ofTokens() ?? this.perToken;
  }

  // The latest stretch in the window in which no prompt was read: its tokens share what is read.
  ofTokens() {
    const last = this.samples.at(-1);
    const since = this.samples.findLastIndex((sample) => sample.at < this.first().at) + 1;
    const is_pure = (sample) => !sample.is_reading && sample.prompt === last.prompt;
    const begin = Math.max(since, this.samples.findLastIndex((sample) => !is_pure(sample)) + 1);
    const decoded = last.decoded - (this.samples[begin] ?? last).decoded;
    return decoded ? moved(this.samples[begin], last, decoded) : null;
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
