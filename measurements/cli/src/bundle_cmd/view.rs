// SPDX-License-Identifier: Apache-2.0
//! A lenient view of a sigstore bundle (protobuf-specs `sigstore_bundle.proto`, JSON form), for the checks that are
//! ours and for naming the cause when `sigstore-verify` refuses. Nothing is trusted because it could be read.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

/// The fields that our checks read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BundleView {
    pub(super) verification_material: Material,
    pub(super) message_signature: Option<MessageSignature>,
    pub(super) dsse_envelope: Option<Envelope>,
}

/// Signer, log entries and timestamps.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Material {
    certificate: Option<RawBytes>,
    x509_certificate_chain: Option<Chain>,
    pub(super) public_key: Option<serde_json::Value>,
    #[serde(default)]
    pub(super) tlog_entries: Vec<Entry>,
    timestamp_verification_data: Option<Timestamps>,
}

#[derive(Deserialize)]
struct Chain {
    #[serde(default)]
    certificates: Vec<RawBytes>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawBytes {
    raw_bytes: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Timestamps {
    #[serde(default)]
    rfc3161_timestamps: Vec<Timestamp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Timestamp {
    signed_timestamp: String,
}

/// A signature over an artifact's bytes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MessageSignature {
    message_digest: Option<MessageDigest>,
    signature: String,
}

#[derive(Deserialize)]
struct MessageDigest {
    digest: String,
}

/// A DSSE envelope.
#[derive(Deserialize)]
pub(super) struct Envelope {
    #[serde(default)]
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

/// One log entry.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    #[serde(default)]
    pub(super) log_index: String,
    pub(super) kind_version: Kind,
    #[serde(default)]
    integrated_time: String,
    pub(super) inclusion_promise: Option<serde_json::Value>,
    pub(super) inclusion_proof: Option<Proof>,
    pub(super) canonicalized_body: String,
}

/// Kind and version of an entry's body.
#[derive(Deserialize)]
pub(super) struct Kind {
    pub(super) kind: String,
    pub(super) version: String,
}

/// Proof that an entry stands in a log.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Proof {
    #[serde(default)]
    pub(super) log_index: String,
    #[serde(default)]
    pub(super) hashes: Vec<String>,
    pub(super) checkpoint: Option<CheckpointView>,
}

/// A checkpoint, as a signed note.
#[derive(Deserialize)]
pub(super) struct CheckpointView {
    #[serde(default)]
    pub(super) envelope: String,
}

impl BundleView {
    /// The certificates' DER, leaf first; `None` where one is not base64.
    pub(super) fn certificates(&self) -> Option<Vec<Vec<u8>>> {
        let material = &self.verification_material;
        let chain = material.x509_certificate_chain.iter().flat_map(|chain| &chain.certificates);
        material.certificate.iter().chain(chain).map(|raw| decode(&raw.raw_bytes)).collect()
    }

    /// Whether there is a list of certificates with nothing in it.
    pub(super) fn has_empty_chain(&self) -> bool {
        self.verification_material.x509_certificate_chain.as_ref().is_some_and(|chain| chain.certificates.is_empty())
    }

    /// The signatures as they stand in the JSON.
    pub(super) fn signatures(&self) -> impl Iterator<Item = &str> {
        let message = self.message_signature.iter().map(|message| message.signature.as_str());
        let envelope = self.dsse_envelope.iter().flat_map(|envelope| &envelope.signatures);
        message.chain(envelope.map(|signature| signature.sig.as_str()))
    }

    /// The artifact's digest as the bundle repeats it, where it does.
    pub(super) fn message_digest(&self) -> Option<Vec<u8>> {
        decode(&self.message_signature.as_ref()?.message_digest.as_ref()?.digest)
    }

    /// The RFC 3161 tokens that are base64.
    pub(super) fn timestamps(&self) -> impl Iterator<Item = Vec<u8>> {
        let data = self.verification_material.timestamp_verification_data.iter();
        data.flat_map(|data| &data.rfc3161_timestamps).filter_map(|token| decode(&token.signed_timestamp))
    }
}

impl Entry {
    /// When the log says that it took the entry, unix seconds; version 2 of Rekor leaves it out.
    pub(super) fn integrated_time(&self) -> Option<i64> {
        self.integrated_time.parse().ok().filter(|time| *time != 0)
    }

    /// The logged bytes.
    pub(super) fn body(&self) -> Option<Vec<u8>> {
        decode(&self.canonicalized_body)
    }
}

/// Standard base64 with padding.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}
