// SPDX-License-Identifier: Apache-2.0
// The official client, unmodified, against a real model: base URL and model are the arguments. A small model says what it
// likes: this looks at the form of answers, never at their sense. The guest may be emulated: all is as short as it can be.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0, timeout: 600_000 });
const ids = [];
for await (const entry of client.models.list()) {
  ids.push(entry.id);
}
assert.deepEqual(ids, [model]);
assert.equal((await client.models.retrieve(model)).id, model);
const asked = { model, messages: [{ role: "user", content: "Capital of France?" }], temperature: 0, seed: 1, max_tokens: 5 };

const whole = await client.chat.completions.create(asked);
assert.ok(whole.choices[0].message.content.length > 0);
let text = "";
let usage = null;
const streamed = { ...asked, stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create(streamed)) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);

const several = await client.chat.completions.create({ ...asked, max_tokens: 3, n: 2, logprobs: true, top_logprobs: 2 });
assert.equal(several.choices.length, 2);
for (const { message, logprobs } of several.choices) {
  assert.equal(message.content, several.choices[0].message.content);
  assert.ok(logprobs.content.length >= 1 && logprobs.content.length <= 3);
  assert.ok(logprobs.content.every((entry) => entry.logprob <= 0 && entry.top_logprobs[0].token === entry.token));
}

const schema = {
  type: "object",
  properties: { answer: { enum: ["yes", "no"] } },
  required: ["answer"],
  additionalProperties: false,
};
const format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema } };
const json = await client.chat.completions.create({ ...asked, max_tokens: 24, response_format: format });
assert.ok(["yes", "no"].includes(JSON.parse(json.choices[0].message.content).answer));

const tools = [{ type: "function", function: { name: "lookup", parameters: schema } }];
const choice = { type: "function", function: { name: "lookup" } };
const stream = client.chat.completions.stream({ ...asked, max_tokens: 40, tools, tool_choice: choice });
const { choices } = await stream.finalChatCompletion();
const [call] = choices[0].message.tool_calls;
assert.equal(call.function.name, "lookup");
assert.ok(["yes", "no"].includes(JSON.parse(call.function.arguments).answer));

for (const [refused, kind, code] of [
  [{ n: 1000 }, OpenAI.BadRequestError, "invalid_value"],
  [{ model: "other" }, OpenAI.NotFoundError, "model_not_found"],
  [{ max_tokens: 100_000 }, OpenAI.BadRequestError, "context_length_exceeded"],
]) {
  await assert.rejects(client.chat.completions.create({ ...asked, ...refused }), (error) => {
    assert.ok(error instanceof kind, error);
    assert.equal(error.code, code);
    return true;
  });
}
console.log("ok");
