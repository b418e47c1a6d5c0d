// The official client of OpenAI: chat completions and responses, tools and streams.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { key, model, parameters, question, sum, url } from "./asked.mjs";

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: question }];
const tool = { type: "function", function: { name: "add", description: "Adds.", parameters } };
const oneCall = { parallel_tool_calls: false, thinking_budget: 30, temperature: 0 };

const whole = await client.chat.completions.create({ model, messages, temperature: 0 });
assert.equal(whole.choices[0].finish_reason, "stop");
const stream = client.chat.completions.stream({
  model, messages, temperature: 0, stream_options: { include_usage: true },
});
let text = "";
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
assert.equal(text, whole.choices[0].message.content);
assert.equal((await stream.totalUsage()).completion_tokens, whole.usage.completion_tokens);

const called = client.chat.completions.stream({
  model, tools: [tool], tool_choice: "required", ...oneCall, messages: [{ role: "user", content: sum }],
});
const { message, finish_reason } = (await called.finalChatCompletion()).choices[0];
assert.equal(finish_reason, "tool_calls");
assert.equal(message.tool_calls[0].function.name, "add");
assert.deepEqual(Object.keys(JSON.parse(message.tool_calls[0].function.arguments)), ["a", "b"]);
const answered = await client.chat.completions.create({
  model, tools: [tool], tool_choice: "none", max_tokens: 50,
  messages: [
    { role: "user", content: sum },
    message,
    { role: "tool", tool_call_id: message.tool_calls[0].id, content: "5" },
  ],
});
assert.ok(["stop", "length"].includes(answered.choices[0].finish_reason));

const response = await client.responses.create({ model, input: question, temperature: 0 });
const told = client.responses.stream({ model, input: question, temperature: 0 });
let said = "";
for await (const event of told) if (event.type === "response.output_text.delta") said += event.delta;
const streamed = await told.finalResponse();
assert.equal(said, response.output_text);
assert.equal(streamed.output_text, response.output_text);
assert.deepEqual(streamed.output.map((item) => item.type), ["reasoning", "message"]);
assert.equal(streamed.usage.output_tokens, response.usage.output_tokens);

const calling = client.responses.stream({
  model, input: sum, ...oneCall, tool_choice: { type: "function", name: "add" },
  tools: [{ type: "function", strict: true, ...tool.function }, { type: "web_search" }],
});
const call = (await calling.finalResponse()).output.at(-1);
assert.equal(call.type, "function_call");
assert.deepEqual(Object.keys(JSON.parse(call.arguments)), ["a", "b"]);

const tooMuch = [{ role: "user", content: "word ".repeat(5000) }];
await assert.rejects(client.chat.completions.create({ model, messages: tooMuch }), (error) => {
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.match(error.message, /exceeds the available context size.*context_length_exceeded/);
  return true;
});
