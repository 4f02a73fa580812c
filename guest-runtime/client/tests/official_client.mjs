// SPDX-License-Identifier: Apache-2.0
// The official client, unmodified, against the proxy: base URL and model are the arguments.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const messages = [{ role: "user", content: "Capital of France?" }];

const whole = await client.chat.completions.create({ model, messages, n: 2, logprobs: true, top_logprobs: 1 });
assert.deepEqual(whole.choices.map((choice) => choice.message.content), ["Paris.", "Paris."]);
assert.equal(whole.choices[1].logprobs.content[0].token, "Par");

let text = "";
for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(text, "Paris.");

const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
const format = { type: "json_schema", json_schema: { name: "city", strict: true, schema } };
const json = await client.chat.completions.create({ model, messages, response_format: format });
assert.deepEqual(JSON.parse(json.choices[0].message.content), { city: "Paris" });

const tools = [{ type: "function", function: { name: "lookup", parameters: { type: "object" } } }];
const stream = client.chat.completions.stream({ model, messages, tools, tool_choice: "required" });
const { choices } = await stream.finalChatCompletion();
assert.equal(choices[0].finish_reason, "tool_calls");
assert.equal(choices[0].message.tool_calls[0].function.name, "lookup");

const completion = await client.completions.create({ model, prompt: "The capital of France is" });
assert.equal(completion.choices[0].text, "Paris.");

await assert.rejects(client.chat.completions.create({ model, messages, n: 1000 }), (error) => {
  assert.equal(error.status, 400);
  assert.equal(error.code, "invalid_value");
  return true;
});
console.log("ok");
