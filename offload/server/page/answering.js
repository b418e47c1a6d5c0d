// One answer from the server into a message: its tokens, its place in the queue, its end.

import { answer, Refusal } from "./api.js";
import { count } from "./figures.js";
import { turn } from "./turns.js";

const PATIENCE = 10; // refusals that may pass, in a row
const REASONS = { 0: "The server does not answer", 429: "The server is busy" };

// changed(): after every event. Never throws: what goes wrong is told in the message.
export async function answerInto(message, body, signal, changed) {
  for (let tries = 0; ; tries += 1) {
    const release = await myTurn(message, signal, changed);
    try {
      for await (const event of answer(body, signal)) {
        take(message, event);
        changed();
      }
      message.state = "done";
    } catch (error) {
      release?.(); // not while it waits for the next try
      if (signal.aborted) message.state = "stopped";
      else if (
        error instanceof Refusal &&
        (error.is_passing || error.is_gone) &&
        tries < PATIENCE &&
        !message.content &&
        !message.reasoning
      ) {
        if (await pause(message, error, signal, changed)) continue;
        message.state = "stopped";
      } else {
        message.state = "failed";
        message.error = told(error);
        message.needs = error.status === 401 ? "key" : error.is_gone ? "server" : null;
      }
    }
    release?.();
    for (const name of ["waiting", "queued", "reading", "came", "began"]) delete message[name];
    changed();
    return;
  }
}

// Said only if it takes a moment.
async function myTurn(message, signal, changed) {
  const timer = setTimeout(() => {
    message.waiting = "Waiting for another answer in this browser: four run at a time";
    changed();
  }, 300);
  const release = await turn(signal);
  clearTimeout(timer);
  delete message.waiting;
  return release;
}

function take(message, event) {
  delete message.waiting;
  if (event.queued !== undefined) message.queued = event.queued;
  if (event.reading) message.reading = event.reading;
  const progress = event.prompt_progress;
  if (progress)
    message.reading = {
      done: progress.processed,
      total: progress.total,
      reused: progress.cache ?? 0,
    };
  const choice = event.choices?.[0];
  const delta = choice?.delta ?? {};
  if (delta.content || delta.reasoning_content || delta.tool_calls)
    message.began ??= performance.now();
  const made = event.answer_progress;
  if (made) {
    message.came = made.tokens;
    message.reasoned = made.reasoning;
  }
  if (delta.reasoning_content) message.reasoning += delta.reasoning_content;
  if (delta.content) message.content += delta.content;
  for (const piece of delta.tool_calls ?? []) {
    const call = (message.calls[piece.index] ??= { id: "", name: "", arguments: "" });
    call.id = piece.id ?? call.id;
    call.name += piece.function?.name ?? "";
    call.arguments += piece.function?.arguments ?? "";
  }
  if (choice?.finish_reason)
    message.finish = choice.stop_reason === "loop" ? "loop" : choice.finish_reason;
  if (event.usage) {
    message.usage = {
      prompt: event.usage.prompt_tokens,
      completion: event.usage.completion_tokens,
      cached: event.usage.prompt_tokens_details?.cached_tokens ?? 0,
      reasoning: event.usage.completion_tokens_details?.reasoning_tokens,
    };
  }
  if (event.timings) message.timings = event.timings;
  if (event.warnings) message.warnings = event.warnings;
}

// Count down to the next try; false if it was stopped.
async function pause(message, error, signal, changed) {
  const seconds = Math.max(1, error.retryAfter ?? 2);
  for (let left = seconds; left > 0; left -= 1) {
    message.waiting = `${REASONS[error.status] ?? "The server is not ready"}: next try in ${left} s`;
    changed();
    await new Promise((done) => {
      const timer = setTimeout(done, 1000);
      signal.addEventListener(
        "abort",
        () => {
          clearTimeout(timer);
          done();
        },
        { once: true },
      );
    });
    if (signal.aborted) return false;
  }
  message.waiting = "Asking again";
  return true;
}

function told(error) {
  if (!(error instanceof Refusal)) return `The page failed: ${error.message}`;
  if (error.status === 401) return "The server asks for an API key.";
  if (error.type === "exceed_context_size_error") {
    const { n_prompt_tokens: has, n_ctx: room } = error.told;
    return `The conversation has ${count(has)} tokens, the context holds ${count(room)}. Begin a new one, edit an earlier message, or start the server with a larger --context.`;
  }
  return error.message;
}
