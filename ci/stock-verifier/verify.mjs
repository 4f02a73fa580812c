// SPDX-License-Identifier: Apache-2.0
// Verifies bundles with npm's @sigstore/verify, a verifier that is not ours.
//
//   node verify.mjs TRUSTED_ROOT KEY HINT BUNDLE...
//
// TRUSTED_ROOT: a sigstore trusted root. KEY: the signer's public key (PEM), which the caller trusts for HINT.
// Prints one line of JSON for each bundle: {"bundle", "accepted", "code", "message"}. Exit 0 whatever they say, 64 for
// wrong usage, 1 when a file can't be read.
import { createPublicKey } from "node:crypto";
import { readFileSync } from "node:fs";
import { bundleFromJSON, isBundleWithDsseEnvelope } from "@sigstore/bundle";
import { TrustedRoot } from "@sigstore/protobuf-specs";
import { toSignedEntity, toTrustMaterial, Verifier } from "@sigstore/verify";

const [rootPath, keyPath, hint, ...bundles] = process.argv.slice(2);
if (bundles.length === 0) {
  console.error("usage: node verify.mjs TRUSTED_ROOT KEY HINT BUNDLE...");
  process.exit(64);
}
const root = TrustedRoot.fromJSON(JSON.parse(readFileSync(rootPath, "utf8")));
const rawBytes = createPublicKey(readFileSync(keyPath)).export({ type: "spki", format: "der" });
const trust = toTrustMaterial(root, { [hint]: { rawBytes } });
// No timestamp authority takes part: the key is trusted by hand, at any time.
const verifier = new Verifier(trust, { tlogThreshold: 1, timestampThreshold: 0 });

for (const path of bundles) {
  const text = readFileSync(path, "utf8");
  let result = { accepted: true, code: null, message: null };
  try {
    const bundle = bundleFromJSON(JSON.parse(text));
    if (!isBundleWithDsseEnvelope(bundle)) throw new Error("not a DSSE envelope");
    verifier.verify(toSignedEntity(bundle));
  } catch (error) {
    result = { accepted: false, code: error.code ?? error.constructor.name, message: error.message };
  }
  console.log(JSON.stringify({ bundle: path, ...result }));
}
