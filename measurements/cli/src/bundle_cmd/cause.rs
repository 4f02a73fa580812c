// SPDX-License-Identifier: Apache-2.0
//! Names the cause of a refusal by `sigstore-verify`. The decision is the library's; where its category is wider than
//! one cause, the bundle's own fields tell which one it is. Its texts are shown, never matched.

use sha2::{Digest as _, Sha256, Sha384, Sha512};
use sigstore_verify::{CertificateError, Error, TimestampError, TransparencyLogError};
use types::{Refusal, Sha256Digest};
use x509_cert::{Certificate, der::Decode as _};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::form::CHECKPOINT;
use super::view::{BundleView, decode};

/// The refusal for an error, given the bundle and the digest of the artifact it was verified for.
pub(super) fn refusal(error: &Error, view: &BundleView, artifact: &Sha256Digest) -> Refusal {
    let (code, field) = match error {
        Error::IdentityMismatch { .. } => ("bundle_identity_mismatch", "certificate.identity"),
        Error::IssuerMismatch { .. } => ("bundle_issuer_mismatch", "certificate.issuer"),
        Error::SignatureInvalid(_) => ("bundle_signature", "signature"),
        Error::ArtifactMismatch(_) => artifact_mismatch(view, artifact),
        Error::UnsupportedArtifact(_) | Error::ArtifactRead(_) => ("bundle_artifact_unusable", "artifact"),
        Error::Certificate(error) => certificate(error, view),
        Error::Timestamp(error) => timestamp(error, view),
        Error::TransparencyLog(error) => log(error, view),
        Error::UnsupportedBundle(_) => ("bundle_unsupported", "bundle"),
        _ => ("bundle_malformed", "bundle"),
    };
    Refusal::new(code, field, error.to_string(), fix(code))
}

type Cause = (&'static str, &'static str);

fn certificate(error: &CertificateError, view: &BundleView) -> Cause {
    match error {
        CertificateError::Sct(_) => ("bundle_certificate_transparency", CERTIFICATE),
        CertificateError::Malformed(_) => ("bundle_certificate_malformed", CERTIFICATE),
        _ if integrated_outside_certificate(view) => ("bundle_integrated_time", INTEGRATED),
        CertificateError::NotYetValid { .. } | CertificateError::Expired { .. } => {
            ("bundle_timestamp_outside_certificate", TIMESTAMP)
        }
        CertificateError::NoValidAuthority { .. } => ("bundle_certificate_authority_not_valid", CERTIFICATE),
        _ => ("bundle_certificate_chain", CERTIFICATE),
    }
}

fn timestamp(error: &TimestampError, view: &BundleView) -> Cause {
    match error {
        TimestampError::OutsideAuthorityValidity { .. } => ("bundle_timestamp_authority_not_valid", TIMESTAMP),
        TimestampError::NoVerifiedTimestamp(_) => ("bundle_timestamp_missing", TIMESTAMP),
        _ if !timestamps_name_signature(view) => ("bundle_timestamp_mismatch", TIMESTAMP),
        _ => ("bundle_timestamp_not_trusted", TIMESTAMP),
    }
}

fn log(error: &TransparencyLogError, view: &BundleView) -> Cause {
    match error {
        TransparencyLogError::UnknownLog { .. } => ("bundle_log_not_trusted", "tlogEntries.logId"),
        TransparencyLogError::InclusionProof(_) => ("bundle_inclusion_proof", "tlogEntries.inclusionProof"),
        TransparencyLogError::Checkpoint(_) => ("bundle_checkpoint_signature", CHECKPOINT),
        TransparencyLogError::InclusionPromise(_) => ("bundle_inclusion_promise", "tlogEntries.inclusionPromise"),
        TransparencyLogError::IntegratedTime(_) => ("bundle_integrated_time", INTEGRATED),
        TransparencyLogError::MalformedEntry(_) if entries_name_signature(view) => ("bundle_log_entry_malformed", BODY),
        _ => ("bundle_log_entry_mismatch", BODY),
    }
}

/// Three parts may name an artifact: the caller, the bundle, and the log entry. Which one stands alone?
fn artifact_mismatch(view: &BundleView, artifact: &Sha256Digest) -> Cause {
    let repeated = view.message_digest();
    let logged = logged_digests(view);
    match repeated {
        Some(digest) if digest == artifact.as_bytes() => ("bundle_log_entry_artifact", BODY),
        Some(_) if logged.iter().any(|digest| digest == artifact.as_bytes()) => {
            ("bundle_message_digest", "messageSignature.messageDigest")
        }
        _ => ("bundle_artifact_mismatch", "subject"),
    }
}

/// Digests in `hashedrekord` entries, versions 0.0.1 (hexadecimal) and 0.0.2 (base64).
fn logged_digests(view: &BundleView) -> Vec<Vec<u8>> {
    let bodies = view.verification_material.tlog_entries.iter().filter_map(super::view::Entry::body);
    let digest = |body: Vec<u8>| {
        let body: serde_json::Value = serde_json::from_slice(&body).ok()?;
        let old = body.pointer("/spec/data/hash/value").and_then(|value| hex::decode(value.as_str()?).ok());
        old.or_else(|| decode(body.pointer("/spec/hashedRekordV002/data/digest")?.as_str()?))
    };
    bodies.filter_map(digest).collect()
}

/// Whether an entry's body holds one of the bundle's signatures: as it stands, or encoded once more (`intoto` 0.0.2).
fn entries_name_signature(view: &BundleView) -> bool {
    view.verification_material.tlog_entries.iter().filter_map(super::view::Entry::body).any(|body| {
        let text = String::from_utf8_lossy(&body);
        view.signatures().any(|signature| text.contains(signature) || text.contains(&STANDARD.encode(signature)))
    })
}

/// Whether a timestamp token holds the digest of one of the signatures (RFC 3161, `messageImprint`).
fn timestamps_name_signature(view: &BundleView) -> bool {
    let signatures: Vec<_> = view.signatures().filter_map(decode).collect();
    let imprints = signatures.iter().flat_map(|signature| {
        [Sha256::digest(signature).to_vec(), Sha384::digest(signature).to_vec(), Sha512::digest(signature).to_vec()]
    });
    let imprints: Vec<_> = imprints.collect();
    view.timestamps().any(|token| imprints.iter().any(|imprint| memchr::memmem::find(&token, imprint).is_some()))
}

/// Whether a log took the entry while the signer's certificate was not valid.
fn integrated_outside_certificate(view: &BundleView) -> bool {
    let leaf = view.certificates().and_then(|certificates| Certificate::from_der(certificates.first()?).ok());
    let Some(leaf) = leaf else { return false };
    let validity = leaf.tbs_certificate().validity();
    let seconds = |time: &x509_cert::time::Time| i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
    let span = seconds(&validity.not_before)..=seconds(&validity.not_after);
    let mut times = view.verification_material.tlog_entries.iter().filter_map(super::view::Entry::integrated_time);
    times.any(|time| !span.contains(&time))
}

fn fix(code: &str) -> &'static str {
    match code {
        "bundle_identity_mismatch" | "bundle_issuer_mismatch" => {
            "name the signer whom you expect, or take the bundle that this signer made"
        }
        "bundle_artifact_mismatch" => "give the artifact that the bundle was made for",
        "bundle_log_not_trusted" => "use the trusted root of the instance that made the bundle",
        "bundle_checkpoint_signature" => "take a bundle whose checkpoint a log of the trusted root signed",
        "bundle_timestamp_not_trusted" | "bundle_timestamp_authority_not_valid" => {
            "have the signature timestamped by an authority of the trusted root while it is valid"
        }
        "bundle_integrated_time" | "bundle_timestamp_outside_certificate" => {
            "sign again, and log the signature while its certificate is valid"
        }
        _ => "take a bundle that the expected signer made for this artifact",
    }
}

const CERTIFICATE: &str = "verificationMaterial.certificate";
const TIMESTAMP: &str = "timestampVerificationData";
const INTEGRATED: &str = "tlogEntries.integratedTime";
const BODY: &str = "tlogEntries.canonicalizedBody";
