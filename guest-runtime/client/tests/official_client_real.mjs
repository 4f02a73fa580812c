// SPDX-License-Identifier: Apache-2.0
// The official client, unmodified, against a real model: base URL and model are the arguments. A small model says what it
// likes: this looks at the form of answers, never at their sense.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0, timeout: 600_000 });
const asked = { model, messages: [{ role: "user", content: "Capital of France?" }], temperature: 0, max_tokens: 8 };

const whole = await client.chat.completions.create(asked);
assert.ok(whole.choices[0].message.content.length > 0);
let text = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(text, whole.choices[0].message.content);

const schema = {
  type: "object",
  properties: { answer: { enum: ["yes", "no"] } },
  required: ["answer"],
  additionalProperties: false,
};
const format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema } };
const json = await client.chat.completions.create({ ...asked, max_tokens: 40, response_format: format });
assert.ok(["yes", "no"].includes(JSON.parse(json.choices[0].message.content).answer));

const tools = [{ type: "function", function: { name: "lookup", parameters: schema } }];
const choice = { type: "function", function: { name: "lookup" } };
const stream = client.chat.completions.stream({ ...asked, max_tokens: 40, tools, tool_choice: choice });
const { choices } = await stream.finalChatCompletion();
const [call] = choices[0].message.tool_calls;
assert.equal(call.function.name, "lookup");
assert.ok(["yes", "no"].includes(JSON.parse(call.function.arguments).answer));

await assert.rejects(client.chat.completions.create({ ...asked, n: 1000 }), (error) => {
  assert.equal(error.status, 400);
  assert.equal(error.code, "invalid_value");
  return true;
});
console.log("ok");
