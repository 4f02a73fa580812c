// SPDX-License-Identifier: Apache-2.0
//! Attacks 62 and 63: bundles that were not logged, or that somebody else signed.

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use release::{Bundle, ReleaseKey};
use serde_json::{Value, json};

use super::Made;
use super::world::{World, random};
use crate::case::Verifier::Bundle as Verify;

const ENTRY: &str = "/verificationMaterial/tlogEntries/0";

pub(super) fn cases(world: &World) -> Result<Vec<Made>> {
    let mut cases = vec![Made::new(
        Verify,
        "00-bundle-accepted",
        "the published bundle",
        "signed, logged as the sixth entry, cosigned by two of three witnesses",
        &[],
    )?];
    cases.extend(without_proof(world)?);
    cases.extend(other_signer(world)?);
    Ok(cases)
}

/// The published bundle with its JSON changed.
pub(super) fn edited(world: &World, change: impl FnOnce(&mut Value) -> Result<()>) -> Result<Vec<u8>> {
    let published: Value = serde_json::from_slice(&world.bundle)?;
    let mut bundle = published.clone();
    change(&mut bundle)?;
    ensure!(bundle != published, "an attack that changes nothing");
    Ok(serde_json::to_vec(&bundle)?)
}

/// The part of a document that a pointer names.
pub(super) fn part<'a>(bundle: &'a mut Value, pointer: &str) -> Result<&'a mut Value> {
    bundle.pointer_mut(pointer).with_context(|| format!("the bundle has no {pointer}"))
}

/// 62: no inclusion proof, or none of this entry.
fn without_proof(world: &World) -> Result<Vec<Made>> {
    let case = |name, title, code, field, change: &dyn Fn(&mut Value) -> Result<()>| -> Result<Made> {
        let origin = "the published bundle with this part changed";
        Ok(Made::new(Verify, name, title, origin, &[(code, field)])?.with("bundle", edited(world, change)?))
    };
    let missing = ("release_not_logged", "verificationMaterial.tlogEntries");
    let proof = ("release_inclusion_proof", "inclusionProof");
    let first: Vec<_> =
        world.log.tree().inclusion_proof(0)?.iter().map(|hash| STANDARD.encode(hash.as_bytes())).collect();
    let remove = |bundle: &mut Value| {
        part(bundle, ENTRY)?.as_object_mut().context("an entry")?.remove("inclusionProof");
        Ok(())
    };
    Ok(vec![
        case("62-no-log-entry", "a bundle without log entry", missing.0, missing.1, &|bundle| {
            *part(bundle, "/verificationMaterial/tlogEntries")? = json!([]);
            Ok(())
        })?,
        case("62-no-inclusion-proof", "a log entry without inclusion proof", missing.0, missing.1, &remove)?,
        case(
            "62-promise-instead-of-proof",
            "a signed promise of the log in the place of the inclusion proof",
            "release_bundle_malformed",
            "bundle",
            &|bundle| {
                remove(bundle)?;
                part(bundle, ENTRY)?["inclusionPromise"] = json!({"signedEntryTimestamp": STANDARD.encode([0x30; 71])});
                Ok(())
            },
        )?,
        case(
            "62-proof-of-another-entry",
            "the inclusion proof of the log's first entry",
            proof.0,
            proof.1,
            &|bundle| {
                for (field, value) in [
                    ("logIndex", json!("0")),
                    ("inclusionProof/logIndex", json!("0")),
                    ("inclusionProof/hashes", json!(first)),
                ] {
                    *part(bundle, &format!("{ENTRY}/{field}"))? = value;
                }
                Ok(())
            },
        )?,
        case("62-shortened-proof", "an inclusion proof without its last hash", proof.0, proof.1, &|bundle| {
            part(bundle, &format!("{ENTRY}/inclusionProof/hashes"))?.as_array_mut().context("hashes")?.pop();
            Ok(())
        })?,
        case("62-other-root", "another root hash beside the signed checkpoint", proof.0, proof.1, &|bundle| {
            *part(bundle, &format!("{ENTRY}/inclusionProof/rootHash"))? = json!(STANDARD.encode([0; 32]));
            Ok(())
        })?,
        case(
            "62-entry-of-another-statement",
            "the log entry is of another signature",
            "release_log_entry_mismatch",
            "tlogEntries.canonicalizedBody",
            &|bundle| {
                let body = part(bundle, &format!("{ENTRY}/canonicalizedBody"))?;
                let text = String::from_utf8(STANDARD.decode(body.as_str().context("body")?)?)?;
                let mut entry: Value = serde_json::from_str(&text)?;
                *part(&mut entry, "/spec/hashedRekordV002/data/digest")? = json!(STANDARD.encode([1; 32]));
                *body = json!(STANDARD.encode(serde_json::to_vec(&entry)?));
                Ok(())
            },
        )?,
    ])
}

/// 63: another signer.
fn other_signer(world: &World) -> Result<Vec<Made>> {
    let stranger = ReleaseKey::from_random(&random()?)?;
    let theirs = Bundle::sign(&world.statement, &stranger)?.to_json()?;
    let mut theirs: Value = serde_json::from_slice(&theirs)?;
    let foreign = Made::new(
        Verify,
        "63-another-signer",
        "the same statement, signed by a key that the policy does not have",
        "signed with another key; not logged, which is not looked at any more",
        &[("release_signer_not_accepted", "verificationMaterial.publicKey")],
    )?
    .with("bundle", serde_json::to_vec(&theirs)?);
    *part(&mut theirs, "/verificationMaterial/publicKey/hint")? = json!(world.key.public().hint()?);
    let disguised = Made::new(
        Verify,
        "63-another-signer-under-an-accepted-name",
        "another key's signature under the accepted key's hint",
        "signed with another key, then named after the accepted one",
        &[("release_signature", "dsseEnvelope.signatures")],
    )?
    .with("bundle", serde_json::to_vec(&theirs)?);
    let mut other = world.statement.clone();
    other.predicate.rebuild_command.push_str(" --debug");
    let payload = STANDARD.encode(other.to_canonical()?);
    let changed = Made::new(
        Verify,
        "63-another-statement-under-the-signature",
        "another well-formed statement under the accepted signer's signature",
        "the published bundle with this payload",
        &[("release_signature", "dsseEnvelope.signatures")],
    )?
    .with(
        "bundle",
        edited(world, |bundle| {
            *part(bundle, "/dsseEnvelope/payload")? = json!(payload);
            Ok(())
        })?,
    );
    Ok(vec![foreign, disguised, changed])
}
