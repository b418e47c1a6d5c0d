// Vercel's AI SDK with its providers: OpenAI-compatible, OpenAI (responses) and Anthropic.
import assert from "node:assert/strict";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, streamText, tool } from "ai";
import { key, model, parameters, question, sum, url } from "./asked.mjs";

const baseURL = `${url}/v1`;
const compatible = createOpenAICompatible({ name: "kimi", baseURL, apiKey: key, includeUsage: true });
const models = {
  compatible: compatible(model),
  responses: createOpenAI({ baseURL, apiKey: key }).responses(model),
  anthropic: createAnthropic({ baseURL, apiKey: key })(model),
};
const add = tool({
  description: "Adds.",
  inputSchema: jsonSchema(parameters),
  execute: ({ a, b }) => a + b,
});

for (const [name, from] of Object.entries(models)) {
  const asked = { model: from, prompt: question, temperature: 0, maxOutputTokens: 200, maxRetries: 0 };
  const whole = await generateText(asked);
  assert.equal(whole.finishReason, "stop", name);
  assert.ok(whole.text, name);

  const stream = streamText(asked);
  const kinds = new Set();
  let text = "";
  for await (const part of stream.fullStream) {
    assert.notEqual(part.type, "error", `${name}: ${JSON.stringify(part)}`);
    kinds.add(part.type);
    if (part.type === "text-delta") text += part.text;
  }
  assert.equal(text, whole.text, name);
  assert.ok(kinds.has("reasoning-start"), name);
  const usage = await stream.usage;
  assert.equal(usage.outputTokens, whole.usage.outputTokens, name);
  assert.ok(usage.inputTokens > 0, name);

  const called = streamText({
    ...asked, prompt: sum, tools: { add }, toolChoice: { type: "tool", toolName: "add" },
    providerOptions: {
      kimi: { parallel_tool_calls: false },
      openai: { parallelToolCalls: false },
      anthropic: { disableParallelToolUse: true },
    },
  });
  await called.consumeStream();
  assert.equal(await called.finishReason, "tool-calls", name);
  const [call] = await called.toolCalls;
  assert.equal(call.toolName, "add", name);
  assert.deepEqual(Object.keys(call.input), ["a", "b"], name);
  const [result] = await called.toolResults;
  assert.equal(result.output, call.input.a + call.input.b, name);
}
