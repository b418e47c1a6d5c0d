// The official client of Anthropic: messages, tools, streams, counts.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import { key, model, parameters, question, sum, url } from "./asked.mjs";

const client = new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: question }];
const asked = { model, max_tokens: 200, temperature: 0 };
const tools = [
  { name: "add", description: "Adds.", input_schema: parameters },
  { type: "web_search_20250305", name: "web_search" },
];

const whole = await client.messages.create({ ...asked, messages });
assert.deepEqual(whole.content.map((block) => block.type), ["thinking", "text"]);
const stream = client.messages.stream({ ...asked, messages });
let text = "";
stream.on("text", (delta) => (text += delta));
const streamed = await stream.finalMessage();
assert.equal(text, whole.content[1].text);
assert.deepEqual(streamed.content.map((block) => block.type), ["thinking", "text"]);
assert.ok(streamed.content[0].signature);
assert.equal(streamed.stop_reason, "end_turn");
assert.equal(streamed.usage.output_tokens, whole.usage.output_tokens);
const count = await client.messages.countTokens({ model, messages });
const { input_tokens, cache_read_input_tokens } = streamed.usage;
assert.equal(input_tokens + cache_read_input_tokens, count.input_tokens);

const calling = client.messages.stream({
  ...asked, tools, tool_choice: { type: "any", disable_parallel_tool_use: true },
  thinking: { type: "enabled", budget_tokens: 30 }, messages: [{ role: "user", content: sum }],
});
const message = await calling.finalMessage();
const call = message.content.at(-1);
assert.equal(message.stop_reason, "tool_use");
assert.equal(call.name, "add");
assert.deepEqual(Object.keys(call.input), ["a", "b"]);
const answered = await client.messages.create({
  ...asked, tools, tool_choice: { type: "none" }, max_tokens: 50,
  messages: [
    { role: "user", content: sum },
    { role: "assistant", content: message.content },
    { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: "5" }] },
  ],
});
assert.ok(["end_turn", "max_tokens"].includes(answered.stop_reason));

const tooMuch = [{ role: "user", content: "word ".repeat(5000) }];
await assert.rejects(client.messages.create({ ...asked, messages: tooMuch }), (error) => {
  assert.ok(error instanceof Anthropic.BadRequestError);
  assert.match(error.message, /prompt is too long: \d+ tokens > \d+ maximum/);
  return true;
});
