// SPDX-License-Identifier: Apache-2.0
// Loads the page verifier, in a browser or elsewhere. It gives the module no imports: it can reach nothing.
//
//   const verify = await verifier(await (await fetch("page_verifier_wasm.wasm")).arrayBuffer());
//   const answer = verify({schema: "chrysalis/verify-request/v1", at: Math.floor(Date.now() / 1000), subject: {…}});
//
// An exception is a refusal: the module ended, and nothing was established.

/** A function from a request (an object, or its JSON) to the answer (the JSON, as text). */
export async function verifierOfText(bytes) {
  const module = await WebAssembly.compile(bytes);
  const imports = WebAssembly.Module.imports(module);
  if (imports.length !== 0) {
    throw new Error(`the module asks for ${imports.length} imports; the page verifier has none`);
  }
  return (request) => {
    // A fresh instance for each request: nothing of one reaches the next, also after a trap.
    const { exports } = new WebAssembly.Instance(module);
    const input = new TextEncoder().encode(typeof request === "string" ? request : JSON.stringify(request));
    exports.chrysalis_begin();
    for (let at = 0; at < input.length; at += 4) {
      const count = Math.min(4, input.length - at);
      let word = 0;
      for (let i = count - 1; i >= 0; i -= 1) word = (word << 8) | input[at + i];
      exports.chrysalis_give(word, count);
    }
    const answer = new Uint8Array(exports.chrysalis_decide() >>> 0);
    for (let at = 0; at < answer.length; at += 4) {
      const word = exports.chrysalis_answer(at);
      for (let i = 0; i < 4 && at + i < answer.length; i += 1) answer[at + i] = (word >>> (8 * i)) & 0xff;
    }
    return new TextDecoder("utf-8", { fatal: true }).decode(answer);
  };
}

/** A function from a request to the answer as an object. */
export async function verifier(bytes) {
  const verify = await verifierOfText(bytes);
  return (request) => JSON.parse(verify(request));
}
