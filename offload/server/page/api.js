// The server's answers. Every request carries the key from the settings.

import { createParser } from "./vendor/eventsource-parser/index.js";
import { settings } from "./settings.js";

// What the server refuses, or why nothing comes. status 0: it cannot be reached.
export class Refusal extends Error {
  constructor(message, { status = 0, type = "", retryAfter = null, told = {} } = {}) {
    super(message);
    Object.assign(this, { status, type, retryAfter, told });
  }

  get is_gone() {
    return this.status === 0;
  }

  // Later it may be different: a full queue, a model that is not loaded yet.
  get is_passing() {
    return this.status === 429 || this.status === 503;
  }
}

export const health = () => ask("/health", { cache: "no-store" });
export const props = () => ask("/props", { cache: "no-store" });
export const machine = (seen) => ask(`/machine?seen=${seen}`, { cache: "no-store" });

async function ask(address, options) {
  const response = await request(address, options);
  const body = await response.json().catch(() => ({}));
  if (!response.ok && !(address === "/health" && body.status)) throw refusal(response, body);
  return body;
}

async function request(address, { headers = {}, ...options } = {}) {
  const key = settings.values.apiKey;
  try {
    return await fetch(address, {
      ...options,
      headers: { ...headers, ...(key && { Authorization: `Bearer ${asBytes(key)}` }) },
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer.");
  }
}

// A header holds bytes, a letter each: these are UTF-8's.
const asBytes = (text) => String.fromCharCode(...new TextEncoder().encode(text));

function refusal(response, body) {
  const told = body.error ?? {};
  const after = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  const text =
    told.message ?? (typeof told === "string" ? told : `The server answered ${response.status}.`);
  return new Refusal(text, {
    status: response.status,
    type: told.type ?? "",
    told,
    retryAfter: Number.isNaN(after) ? null : after,
  });
}

// An answer as it comes: {queued}, {reading: {done, total, reused}}, or a chunk of the OpenAI form.
export async function* answer(body, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    signal,
    body: JSON.stringify(body),
    headers: { "Content-Type": "application/json" },
  });
  if (!response.ok) throw refusal(response, await response.json().catch(() => ({})));
  const events = [];
  let is_whole = false;
  const parser = createParser({
    onEvent: ({ data }) => (data === "[DONE]" ? (is_whole = true) : events.push(JSON.parse(data))),
    onComment: (text) => events.push(...told(text)),
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        if (signal.aborted) throw error;
        throw new Refusal("The connection was lost in the middle of the answer.");
      });
      if (done) break;
      parser.feed(value);
      for (const event of events.splice(0)) {
        if (event.error)
          throw new Refusal(event.error.message ?? "The answer failed.", {
            status: event.error.code ?? 500,
            type: event.error.type,
            told: event.error,
          });
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  if (!is_whole) throw new Refusal("The connection was lost in the middle of the answer.");
}

// Comments: "queued 3", "reading 512/8192 reused 100"; others only keep the connection.
function told(text) {
  const queued = /^queued (\d+)/.exec(text);
  if (queued) return [{ queued: Number(queued[1]) }];
  const reading = /^reading (\d+)\/(\d+)(?: reused (\d+))?/.exec(text);
  return reading
    ? [
        {
          reading: {
            done: Number(reading[1]),
            total: Number(reading[2]),
            reused: Number(reading[3] ?? 0),
          },
        },
      ]
    : [];
}
