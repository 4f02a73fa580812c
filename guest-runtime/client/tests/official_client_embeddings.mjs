// SPDX-License-Identifier: Apache-2.0
// The official client, unmodified, asks a guest with an embedding model for vectors.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const near = (found, expected) =>
  found.length === expected.length && expected.every((value, index) => Math.abs(found[index] - value) < 1e-9);

for (const options of [{}, { encoding_format: "float" }, { dimensions: 2 }]) {
  const answer = await client.embeddings.create({ model, input: ["one", "two"], ...options });
  assert.deepEqual(answer.data.map((entry) => entry.index), [0, 1]);
  assert(near(Array.from(answer.data[1].embedding), [1.5, -1e-7]));
  assert.equal(answer.usage.total_tokens, 6);
}
for (const input of ["one", [7, 8], [[7, 8]]]) {
  const answer = await client.embeddings.create({ model, input });
  assert(near(Array.from(answer.data[0].embedding), [0.5, -1e-7]));
}
await assert.rejects(client.embeddings.create({ model, input: "overflow" }), { code: "context_length_exceeded" });
await assert.rejects(client.embeddings.create({ model, input: "one", dimensions: 1 }), { code: "invalid_value" });
console.log("ok");
