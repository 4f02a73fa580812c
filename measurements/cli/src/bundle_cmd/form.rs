// SPDX-License-Identifier: Apache-2.0
//! What a bundle must have before any signature is looked at: each missing or wrong part has a code of its own.

use release::log::note::Note;
use types::Refusal;
use x509_cert::{Certificate, der::Decode as _};

use super::view::{BundleView, Entry, decode};

/// How the caller lets signers be named.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Signer {
    /// A certificate's identity and issuer.
    Identity,
    /// A public key.
    Key,
}

/// Checks the form. `promise_is_enough` accepts entries that carry only the log's signed promise to include them.
pub(super) fn check(view: &BundleView, signer: Signer, promise_is_enough: bool) -> Result<(), Refusal> {
    check_signer(view, signer)?;
    if view.signatures().next().is_none() {
        return Err(refuse("bundle_signature_missing", "signature", "the bundle carries no signature"));
    }
    if view.signatures().any(|signature| decode(signature).is_none()) {
        return Err(refuse("bundle_signature_encoding", "signature", "the signature is not base64"));
    }
    let entries = &view.verification_material.tlog_entries;
    if entries.is_empty() {
        return Err(refuse("bundle_log_entry_missing", "tlogEntries", "the bundle names no entry in a log"));
    }
    entries.iter().try_for_each(|entry| check_entry(entry, promise_is_enough))
}

fn check_signer(view: &BundleView, signer: Signer) -> Result<(), Refusal> {
    if view.has_empty_chain() {
        return Err(refuse("bundle_certificate_chain_empty", CHAIN, "the certificate chain has no certificate"));
    }
    let malformed = || refuse("bundle_certificate_malformed", CHAIN, "a certificate is not base64 of DER");
    let certificates = view.certificates().ok_or_else(malformed)?;
    for der in &certificates {
        let certificate = Certificate::from_der(der).map_err(|_| malformed())?;
        let tbs = certificate.tbs_certificate();
        if tbs.issuer() == tbs.subject() {
            let detail = "the chain contains a root certificate: trust comes from the trusted root alone";
            return Err(refuse("bundle_certificate_chain_has_root", CHAIN, detail));
        }
    }
    match signer {
        Signer::Identity if certificates.is_empty() => {
            let detail = "the bundle was signed with a bare key, whose owner it does not prove";
            Err(Refusal::new("bundle_key_needed", KEY, detail, "give the signer's public key with --key"))
        }
        Signer::Key if view.verification_material.public_key.is_none() => {
            let detail = "the bundle was signed with a certificate, not with a bare key";
            Err(Refusal::new("bundle_identity_needed", CHAIN, detail, "give --identity and --issuer instead of --key"))
        }
        Signer::Identity | Signer::Key => Ok(()),
    }
}

fn check_entry(entry: &Entry, promise_is_enough: bool) -> Result<(), Refusal> {
    let index = |text: &str| text.is_empty() || text.parse::<i64>().is_ok_and(|index| index >= 0);
    if !index(&entry.log_index) || entry.inclusion_proof.as_ref().is_some_and(|proof| !index(&proof.log_index)) {
        return Err(refuse("bundle_log_index", "tlogEntries.logIndex", "an index in a log is a number from 0 on"));
    }
    let Some(proof) = &entry.inclusion_proof else {
        if promise_is_enough && entry.inclusion_promise.is_some() {
            return Ok(());
        }
        let detail = "no proof that the entry stands in the log; a log's signed promise proves only what it promised";
        return Err(refuse("bundle_inclusion_proof_missing", PROOF, detail));
    };
    let Some(checkpoint) = &proof.checkpoint else {
        return Err(refuse("bundle_checkpoint_missing", CHECKPOINT, "the inclusion proof has no signed checkpoint"));
    };
    checkpoint_form(&checkpoint.envelope)
}

/// Origin, size and root (C2SP tlog-checkpoint) under at least one signature line (C2SP signed-note).
fn checkpoint_form(envelope: &str) -> Result<(), Refusal> {
    let malformed = |detail: &str| refuse("bundle_checkpoint_malformed", CHECKPOINT, detail);
    let text = envelope.split_once("\n\n").map_or(envelope, |(text, _)| text);
    let mut lines = text.lines();
    let (origin, size, root) = (lines.next(), lines.next(), lines.next());
    if origin.is_none_or(str::is_empty) {
        return Err(malformed("the checkpoint has no origin"));
    }
    if size.and_then(|size| size.parse::<u64>().ok()).is_none() {
        return Err(malformed("the checkpoint's second line is not the size of a tree"));
    }
    if root.and_then(decode).is_none_or(|root| root.len() != 32) {
        return Err(malformed("the checkpoint's third line is not a root hash"));
    }
    let signed = envelope.split_once("\n\n").is_some_and(|(_, signatures)| !signatures.trim().is_empty());
    if !signed {
        return Err(refuse("bundle_checkpoint_unsigned", CHECKPOINT, "the checkpoint carries no signature"));
    }
    Note::parse(envelope).map(|_| ()).map_err(|error| malformed(&error.to_string()))
}

fn refuse(code: &str, field: &str, detail: &str) -> Refusal {
    Refusal::new(code, field, detail, "take the bundle as its signer published it, or have the artifact signed again")
}

const CHAIN: &str = "verificationMaterial.certificate";
const KEY: &str = "verificationMaterial.publicKey";
const PROOF: &str = "tlogEntries.inclusionProof";
/// Field of the checkpoint in refusals.
pub(super) const CHECKPOINT: &str = "tlogEntries.inclusionProof.checkpoint";
