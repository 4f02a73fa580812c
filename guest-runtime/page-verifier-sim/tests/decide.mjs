// SPDX-License-Identifier: Apache-2.0
// node decide.mjs MODULE REQUESTS: one request a line, each a JSON string; one answer a line.
import { readFileSync } from "node:fs";
import { verifierOfText } from "../../page-verifier-wasm/verifier.mjs";

const [module, requests] = process.argv.slice(2);
const verify = await verifierOfText(readFileSync(module));
for (const line of readFileSync(requests, "utf8").split("\n").filter(Boolean)) {
  console.log(verify(JSON.parse(line)));
}
