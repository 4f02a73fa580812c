// SPDX-License-Identifier: Apache-2.0
//! What serve asks of the attester, after the event `serve`.

use serde::{Deserialize, Serialize};
use types::{Base64, ConnectionProof, FreshnessKind, Hex32, Sha256Digest};

/// Most bytes of an evidence document in a frame. Smaller than the document's own cap: a frame has 1 MiB.
pub const MAX_EVIDENCE: usize = 704 * 1024;
/// Most bytes of one DER certificate.
pub const MAX_CERTIFICATE: usize = 32 * 1024;
/// Most bytes of a message for `sign-tls`: 64 spaces, context string, zero, a hash of 48 bytes make 146.
pub const MAX_TLS_MESSAGE: usize = 160;
/// Most bytes of a canonical receipt.
pub const MAX_RECEIPT: usize = 4096;
/// The TLS key's signature scheme: `ed25519` (RFC 8446 section 4.2.3).
pub const TLS_SCHEME: u16 = 0x0807;

/// A serving request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ServingRequest {
    /// Certificate, evidence and public keys. They stay the same as long as the guest runs.
    Identity {},
    /// Signs the content of a TLS 1.3 server's `CertificateVerify` (RFC 8446 section 4.4.3), nothing else.
    SignTls {
        /// Must be [`TLS_SCHEME`].
        scheme: u16,
        /// 64 × 0x20 ‖ "TLS 1.3, server `CertificateVerify`" ‖ 0x00 ‖ transcript hash: what rustls gives to `Signer::sign`.
        message: Base64<MAX_TLS_MESSAGE>,
    },
    /// A fresh proof. Requests that arrive while a quote is being made share the next quote.
    Prove {
        /// `tls` or `hpke`.
        kind: FreshnessKind,
        /// The client's challenge.
        challenge: Hex32,
        /// Exporter of the client's connection, taken by serve from its own side.
        binding: Hex32,
    },
    /// Signs the next receipt. The attester adds sequence, previous, model, launch, evidence and instance key.
    SignReceipt {
        /// SHA-256(salt ‖ request body).
        request: Sha256Digest,
        /// SHA-256(salt ‖ response text).
        response: Sha256Digest,
        /// Tokens of the prompt.
        prompt_tokens: u64,
        /// Tokens of the answer.
        completion_tokens: u64,
        /// SHA-256 of the exporter binding of the connection.
        channel: Sha256Digest,
    },
}

/// Answer to a serving request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ServingAnswer {
    /// To `identity`.
    Identity(Box<Identity>),
    /// To `sign-tls`.
    TlsSignature {
        /// Ed25519, 64 bytes.
        signature: Base64<64>,
    },
    /// To `prove`.
    Proof {
        /// The proof; serve sends its canonical form.
        proof: Box<ConnectionProof>,
    },
    /// To `sign-receipt`.
    Receipt {
        /// Canonical receipt.
        receipt: Base64<MAX_RECEIPT>,
        /// Ed25519 by the instance key over "chrysalis/receipt/v2" ‖ the canonical receipt, 64 bytes.
        signature: Base64<64>,
    },
}

/// Who the guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Certificate chain, leaf first, DER. Today exactly one, self-signed.
    pub certificates: Vec<Base64<MAX_CERTIFICATE>>,
    /// The canonical evidence document; its SHA-256 is the digest in certificate, proofs and receipts. Role, model,
    /// configuration and time state stand in it.
    pub evidence: Base64<MAX_EVIDENCE>,
    /// SHA-256 of the DER SPKI of the TLS key.
    pub spki_sha256: Sha256Digest,
    /// The Ed25519 key that signs receipts.
    pub instance_key: Hex32,
    /// Seconds since 1970 when this answer was made: attested time plus monotonic progress since (the host owns the
    /// wall clock). Add your own monotonic progress to it.
    pub unix: u64,
}
