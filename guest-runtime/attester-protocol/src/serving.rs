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
/// How many renewals a TLS key outlives that connections go on with. Whoever keeps connections ends those of a key one
/// renewal earlier, so that none of them asks in vain.
pub const OLD_KEYS: u64 = 4;
/// The TLS key's signature scheme: `ed25519` (RFC 8446 section 4.2.3).
pub const TLS_SCHEME: u16 = 0x0807;

/// A serving request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ServingRequest {
    /// The newest certificate, its evidence and the public keys. The instance key stays the same as long as the guest runs,
    /// the TLS key is renewed with certificate and evidence.
    Identity {},
    /// As `identity`, answered only when the newest TLS key is another one than this.
    Successor {
        /// SHA-256 of the DER SPKI of a TLS key.
        key: Sha256Digest,
    },
    /// Keeps this TLS key from being given up by `retire`, as long as the connection that asks is open.
    Hold {
        /// SHA-256 of its DER SPKI.
        key: Sha256Digest,
    },
    /// None of serve's connections uses this TLS key any more: it is overwritten, unless it is the newest or held.
    Retire {
        /// SHA-256 of its DER SPKI.
        key: Sha256Digest,
    },
    /// Signs the content of a TLS 1.3 `CertificateVerify` (RFC 8446 section 4.4.3) of the given side, nothing else.
    SignTls {
        /// SHA-256 of the DER SPKI of the certificate that was shown.
        key: Sha256Digest,
        /// Which side of the connection this guest is.
        side: TlsSide,
        /// Must be [`TLS_SCHEME`].
        scheme: u16,
        /// 64 × 0x20 ‖ "TLS 1.3, server `CertificateVerify`" (or "client") ‖ 0x00 ‖ transcript hash: what rustls gives to
        /// `Signer::sign`.
        message: Base64<MAX_TLS_MESSAGE>,
    },
    /// A fresh proof. Requests that arrive while a quote is being made share the next quote.
    Prove {
        /// SHA-256 of the DER SPKI of the TLS key that the connection began with.
        key: Sha256Digest,
        /// `tls` to a client, `tls-client` to a server, or `hpke`.
        kind: FreshnessKind,
        /// The peer's challenge.
        challenge: Hex32,
        /// Exporter of the peer's connection, taken by serve from its own side.
        binding: Hex32,
    },
    /// Signs the next receipt. The attester adds sequence, previous, model, launch and instance key.
    SignReceipt {
        /// Address of the evidence document that the connection was proven with: one of this guest's own.
        evidence: Sha256Digest,
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

/// A side of a TLS connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsSide {
    /// It was connected to.
    Server,
    /// It connected.
    Client,
}

/// Answer to a serving request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ServingAnswer {
    /// To `identity` and `successor`.
    Identity(Box<Identity>),
    /// To `hold`.
    Held {},
    /// To `retire`.
    Retired {},
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

/// Who the guest is, with its newest TLS key.
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
