// SPDX-License-Identifier: Apache-2.0
//! Any sigstore bundle: `sigstore-verify` first, then our own check of inclusion and witnesses.

use std::path::Path;

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use release::log::note::{Note, WitnessKey, count_cosignatures};
use release::log::{leaf_hash, verify_inclusion};
use serde::Deserialize;
use serde_json::json;
use sigstore_verify::trust_root::TrustedRoot;
use sigstore_verify::types::{Artifact, Bundle, DerPublicKey, Sha256Hash};
use sigstore_verify::{Error, Policy, PublicKeyVerificationPolicy, TransparencyLogError, VerificationPolicy, Verifier};
use types::{Refusal, Sha256Digest};

use super::{MAX_ARTIFACT, VerifyArgs};
use crate::output::{Report, accepted, refused};
use crate::{input, key_file};

pub(super) fn verify(args: &VerifyArgs, bytes: &[u8]) -> Result<Report> {
    let root = trusted_root(args.trusted_root.as_deref().context("--trusted-root is missing")?)?;
    let verifier = Verifier::new(&root).context("the trusted root can't be used")?;
    let policy = policy(args)?;
    let witnesses = args.witness.iter().map(|path| key_file::witness_key(path)).collect::<Result<Vec<_>>>()?;
    let Some(text) = core::str::from_utf8(bytes).ok() else { return Ok(refused(vec![malformed("it is not UTF-8")])) };
    let bundle = match Bundle::from_json(text) {
        Ok(bundle) => bundle,
        Err(error) => return Ok(refused(vec![malformed(&error.to_string())])),
    };
    let verified = match (&args.artifact, args.digest) {
        (Some(path), _) => verifier.verify(input::file(path, MAX_ARTIFACT)?.as_slice(), &bundle, &*policy),
        (None, Some(digest)) => {
            let hash = Sha256Hash::new(*digest.as_bytes());
            verifier.verify(Artifact::from_digest(hash), &bundle, &*policy)
        }
        (None, None) => anyhow::bail!("give --artifact or --digest"),
    };
    let verified = match verified {
        Ok(verified) => verified,
        Err(error) => return Ok(refused(vec![refusal(&error)])),
    };
    let logged = match check_logs(text, &witnesses, args.threshold.map(std::num::NonZeroUsize::get)) {
        Ok(logged) => logged,
        Err(refusal) => return Ok(refused(vec![refusal])),
    };
    let identity = verified.identity().map(ToString::to_string);
    let signer = identity.clone().unwrap_or_else(|| "the given key".to_owned());
    let json = json!({"identity": identity, "issuer": verified.issuer(), "logs": logged});
    Ok(accepted(json, format!("accepted: signed by {signer}, logged in {}", logged.join(", "))))
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

/// What our own check of the log needs. The bundle's form was checked before.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BundleView {
    verification_material: MaterialView,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MaterialView {
    #[serde(default)]
    tlog_entries: Vec<EntryView>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EntryView {
    #[serde(default)]
    log_index: String,
    kind_version: VersionView,
    inclusion_proof: Option<ProofView>,
    canonicalized_body: String,
}

#[derive(Deserialize)]
struct VersionView {
    kind: String,
    version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProofView {
    #[serde(default)]
    log_index: String,
    #[serde(default)]
    hashes: Vec<String>,
    checkpoint: CheckpointView,
}

#[derive(Deserialize)]
struct CheckpointView {
    envelope: String,
}

/// Checks every entry's inclusion proof and its checkpoint's cosignatures; gives the logs' origins.
fn check_logs(bundle: &str, witnesses: &[WitnessKey], threshold: Option<usize>) -> Result<Vec<String>, Refusal> {
    let view: BundleView = serde_json::from_str(bundle).map_err(|e| malformed(&e.to_string()))?;
    let mut origins = Vec::new();
    for entry in &view.verification_material.tlog_entries {
        // Old bundles may have the log's signed promise alone, which `sigstore-verify` checked.
        let Some(proof) = &entry.inclusion_proof else { continue };
        let note = Note::parse(&proof.checkpoint.envelope).map_err(|e| checkpoint(&e.to_string()))?;
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
    if threshold.is_some() && origins.is_empty() {
        return Err(inclusion());
    }
    Ok(origins)
}

/// The origin of the log, when the entry stands in the checkpoint's tree.
fn check_inclusion(entry: &EntryView, proof: &ProofView, note: &Note<'_>) -> Option<String> {
    let mut lines = note.text().lines();
    let (origin, size, root) = (lines.next()?, lines.next()?.parse().ok()?, lines.next()?);
    let body = STANDARD.decode(&entry.canonicalized_body).ok()?;
    // Version 2 of Rekor has one tree per log; before, the index in the proof is that in the shard.
    let VersionView { kind, version } = &entry.kind_version;
    let one_tree = matches!((kind.as_str(), version.as_str()), ("hashedrekord" | "dsse", "0.0.2"));
    let index = if one_tree { &entry.log_index } else { &proof.log_index };
    let index = if index.is_empty() { 0 } else { index.parse().ok()? };
    let path = proof.hashes.iter().map(|hash| digest(hash)).collect::<Option<Vec<_>>>()?;
    verify_inclusion(&leaf_hash(&body), index, size, &path, &digest(root)?).ok()?;
    Some(origin.to_owned())
}

fn digest(text: &str) -> Option<Sha256Digest> {
    Sha256Digest::from_slice(&STANDARD.decode(text).ok()?).ok()
}

fn malformed(detail: &str) -> Refusal {
    Refusal::new("bundle_malformed", "bundle", detail, "fetch the bundle again from where it was published")
}

fn checkpoint(detail: &str) -> Refusal {
    Refusal::new("bundle_checkpoint", CHECKPOINT, detail, "fetch the bundle again from where it was published")
}

fn inclusion() -> Refusal {
    let detail = "the entry is not in the checkpoint's tree";
    Refusal::new("bundle_inclusion_proof", "tlogEntries.inclusionProof", detail, "sign and log the artifact again")
}

/// Codes by the kind of error; texts are sigstore-verify's.
fn refusal(error: &Error) -> Refusal {
    let (code, field) = match error {
        Error::IdentityMismatch { .. } => ("bundle_identity_mismatch", "certificate.identity"),
        Error::IssuerMismatch { .. } => ("bundle_issuer_mismatch", "certificate.issuer"),
        Error::SignatureInvalid(_) => ("bundle_signature", "signature"),
        Error::ArtifactMismatch(_) => ("bundle_artifact_mismatch", "subject"),
        Error::UnsupportedArtifact(_) | Error::ArtifactRead(_) => ("bundle_artifact_unusable", "artifact"),
        Error::Certificate(_) => ("bundle_certificate", "verificationMaterial.certificate"),
        Error::Timestamp(_) => ("bundle_timestamp", "timestampVerificationData"),
        Error::TransparencyLog(inner) => match inner {
            TransparencyLogError::UnknownLog { .. } => ("bundle_log_not_trusted", "tlogEntries.logId"),
            TransparencyLogError::InclusionProof(_) => ("bundle_inclusion_proof", "tlogEntries.inclusionProof"),
            TransparencyLogError::Checkpoint(_) => ("bundle_checkpoint", CHECKPOINT),
            TransparencyLogError::InclusionPromise(_) => ("bundle_inclusion_promise", "tlogEntries.inclusionPromise"),
            TransparencyLogError::IntegratedTime(_) => ("bundle_integrated_time", "tlogEntries.integratedTime"),
            _ => ("bundle_log_entry_mismatch", "tlogEntries.canonicalizedBody"),
        },
        _ => ("bundle_malformed", "bundle"),
    };
    Refusal::new(code, field, error.to_string(), "take a bundle that the expected signer made for this artifact")
}

const CHECKPOINT: &str = "tlogEntries.inclusionProof.checkpoint";
const MAX_ROOT: u64 = 4 << 20;
