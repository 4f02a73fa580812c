// SPDX-License-Identifier: Apache-2.0
//! Any sigstore bundle: its form, then `sigstore-verify`, then our own check of inclusion and witnesses.

use std::path::Path;

use anyhow::{Context as _, Result};
use release::log::note::{Note, WitnessKey, count_cosignatures};
use release::log::{leaf_hash, verify_inclusion};
use serde_json::json;
use sigstore_verify::trust_root::TrustedRoot;
use sigstore_verify::types::{Artifact, Bundle, DerPublicKey, Sha256Hash};
use sigstore_verify::{Policy, PublicKeyVerificationPolicy, VerificationPolicy, Verifier};
use types::{Refusal, Sha256Digest};

use super::form::{self, CHECKPOINT, Signer};
use super::view::{BundleView, Entry, Kind, Proof, decode};
use super::{MAX_ARTIFACT, VerifyArgs, cause};
use crate::output::{Report, accepted, refused};
use crate::{input, key_file};

pub(super) fn verify(args: &VerifyArgs, bytes: &[u8]) -> Result<Report> {
    let root = trusted_root(args.trusted_root.as_deref().context("--trusted-root is missing")?)?;
    let verifier = Verifier::new(&root).context("the trusted root can't be used")?;
    let policy = policy(args)?;
    let witnesses = args.witness.iter().map(|path| key_file::witness_key(path)).collect::<Result<Vec<_>>>()?;
    let Some(text) = core::str::from_utf8(bytes).ok() else { return Ok(refused(vec![malformed("it is not UTF-8")])) };
    let view: BundleView = match serde_json::from_str(text) {
        Ok(view) => view,
        Err(error) => return Ok(refused(vec![malformed(&error.to_string())])),
    };
    let signer = if args.key.is_some() { Signer::Key } else { Signer::Identity };
    if let Err(refusal) = form::check(&view, signer, args.allow_promise) {
        return Ok(refused(vec![refusal]));
    }
    let bundle = match Bundle::from_json(text) {
        Ok(bundle) => bundle,
        Err(error) => return Ok(refused(vec![malformed(&error.to_string())])),
    };
    let (artifact, verified) = match (&args.artifact, args.digest) {
        (Some(path), _) => {
            let artifact = input::file(path, MAX_ARTIFACT)?;
            (Sha256Digest::of(&artifact), verifier.verify(artifact.as_slice(), &bundle, &*policy))
        }
        (None, Some(digest)) => {
            let hash = Sha256Hash::new(*digest.as_bytes());
            (digest, verifier.verify(Artifact::from_digest(hash), &bundle, &*policy))
        }
        (None, None) => anyhow::bail!("give --artifact or --digest"),
    };
    let verified = match verified {
        Ok(verified) => verified,
        Err(error) => return Ok(refused(vec![cause::refusal(&error, &view, &artifact)])),
    };
    let logged = match check_logs(&view, &witnesses, args.threshold.map(std::num::NonZeroUsize::get)) {
        Ok(logged) => logged,
        Err(refusal) => return Ok(refused(vec![refusal])),
    };
    let promised = view.verification_material.tlog_entries.iter().any(|entry| entry.inclusion_proof.is_none());
    let identity = verified.identity().map(ToString::to_string);
    let signer = identity.clone().unwrap_or_else(|| "the given key".to_owned());
    let json = json!({"identity": identity, "issuer": verified.issuer(), "logs": logged, "promise_only": promised});
    let logs = if promised { "the log's promise only".to_owned() } else { logged.join(", ") };
    Ok(accepted(json, format!("accepted: signed by {signer}, logged in {logs}")))
}

fn trusted_root(path: &Path) -> Result<TrustedRoot> {
    let text = String::from_utf8(input::file(path, MAX_ROOT)?)?;
    TrustedRoot::from_json(&text).with_context(|| format!("{} is not a sigstore trusted root", path.display()))
}

fn policy(args: &VerifyArgs) -> Result<Box<dyn Policy>> {
    match (&args.key, &args.identity, &args.issuer) {
        (Some(path), ..) => {
            let pem = key_file::read_text(path)?;
            let key = DerPublicKey::from_pem(&pem).with_context(|| format!("could not use {}", path.display()))?;
            Ok(Box::new(PublicKeyVerificationPolicy::new(key)))
        }
        (None, Some(identity), Some(issuer)) => {
            Ok(Box::new(VerificationPolicy::new(identity.as_str(), issuer.as_str())))
        }
        _ => anyhow::bail!("give --key, or --identity and --issuer"),
    }
}

/// Checks every entry's inclusion proof and its checkpoint's cosignatures; gives the logs' origins.
fn check_logs(view: &BundleView, witnesses: &[WitnessKey], threshold: Option<usize>) -> Result<Vec<String>, Refusal> {
    let mut origins = Vec::new();
    for entry in &view.verification_material.tlog_entries {
        // Without a proof only where the caller takes the log's signed promise, which `sigstore-verify` checked.
        let Some(proof) = &entry.inclusion_proof else { continue };
        let envelope = proof.checkpoint.as_ref().map_or("", |checkpoint| &checkpoint.envelope);
        let note = Note::parse(envelope).map_err(|e| malformed(&e.to_string()))?;
        origins.push(check_inclusion(entry, proof, &note).ok_or_else(inclusion)?);
        if let Some(needed) = threshold {
            let found = count_cosignatures(&note, witnesses);
            if found < needed {
                let detail = format!("{found} accepted witnesses cosigned the checkpoint, {needed} are needed");
                let fix = "take a bundle whose checkpoint accepted witnesses cosigned";
                return Err(Refusal::new("bundle_witnesses_missing", CHECKPOINT, detail, fix));
            }
        }
    }
    Ok(origins)
}

/// The origin of the log, when the entry stands in the checkpoint's tree.
fn check_inclusion(entry: &Entry, proof: &Proof, note: &Note<'_>) -> Option<String> {
    let mut lines = note.text().lines();
    let (origin, size, root) = (lines.next()?, lines.next()?.parse().ok()?, lines.next()?);
    // Version 2 of Rekor has one tree per log; before, the index in the proof is that in the shard.
    let Kind { kind, version } = &entry.kind_version;
    let one_tree = matches!((kind.as_str(), version.as_str()), ("hashedrekord" | "dsse", "0.0.2"));
    let index = if one_tree { &entry.log_index } else { &proof.log_index };
    let index = if index.is_empty() { 0 } else { index.parse().ok()? };
    let path = proof.hashes.iter().map(|hash| digest(hash)).collect::<Option<Vec<_>>>()?;
    verify_inclusion(&leaf_hash(&entry.body()?), index, size, &path, &digest(root)?).ok()?;
    Some(origin.to_owned())
}

fn digest(text: &str) -> Option<Sha256Digest> {
    Sha256Digest::from_slice(&decode(text)?).ok()
}

fn malformed(detail: &str) -> Refusal {
    Refusal::new("bundle_malformed", "bundle", detail, "fetch the bundle again from where it was published")
}

fn inclusion() -> Refusal {
    let detail = "the entry is not in the checkpoint's tree";
    Refusal::new("bundle_inclusion_proof", "tlogEntries.inclusionProof", detail, "sign and log the artifact again")
}

const MAX_ROOT: u64 = 4 << 20;
