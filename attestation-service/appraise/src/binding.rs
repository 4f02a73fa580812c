// SPDX-License-Identifier: Apache-2.0
//! Freshness and REPORTDATA: that this guest answers on this connection, now.

use attested_channel::{Leaf, Moment, ReportDataInputs, verify_path};
use tdx_verify::VerifiedQuote;
use types::{ConnectionProof, Evidence, Freshness, FreshnessKind, Role, Sha256Digest};

use crate::{claims::hex, verdict::Checks};

/// What the evidence must be bound to. Challenge and exporter come from the verifier's own connection, never from
/// the peer's message.
#[derive(Debug, Clone, Copy)]
pub enum Binding<'a> {
    /// A key release: the quote of the evidence itself is fresh, for this challenge alone.
    KeyRelease {
        /// The service's challenge.
        challenge: &'a [u8; 32],
        /// The connection's exporter for it.
        exporter: &'a [u8; 32],
    },
    /// A connection to a serving guest, which is its server: the proof's quote is fresh, the evidence was made earlier.
    Connection {
        /// What the guest answered.
        proof: &'a ConnectionProof,
        /// The client's challenge.
        challenge: &'a [u8; 32],
        /// The connection's exporter for it.
        exporter: &'a [u8; 32],
        /// SHA-256 of the SPKI of the certificate that the connection's handshake was signed with.
        spki_sha256: &'a Sha256Digest,
    },
    /// As [`Self::Connection`], but the guest is the connection's client: it connected to the verifier. Its proof is of
    /// another kind, so that no proof of one side passes for one of the other.
    GuestClient {
        /// What the guest said.
        proof: &'a ConnectionProof,
        /// The server's challenge.
        challenge: &'a [u8; 32],
        /// The connection's exporter for it.
        exporter: &'a [u8; 32],
        /// SHA-256 of the SPKI of the certificate that the guest signed the handshake with.
        spki_sha256: &'a Sha256Digest,
    },
    /// A document without a connection, judged on its own. Such a verdict is never [`crate::Accepted`].
    Document {
        /// How far the boot is expected to have come.
        moment: Moment,
    },
}

impl Binding<'_> {
    /// Whether it binds evidence to a connection of the verifier.
    pub(crate) const fn is_connection(&self) -> bool {
        !matches!(self, Self::Document { .. })
    }

    pub(crate) const fn moment(&self) -> Moment {
        match self {
            Self::KeyRelease { .. } => Moment::KeyRelease,
            Self::Connection { .. } | Self::GuestClient { .. } => Moment::Serving,
            Self::Document { moment } => *moment,
        }
    }
}

/// `digest` is that of the evidence document, where it has a canonical form.
pub(crate) fn check(
    evidence: &Evidence,
    digest: Option<&Sha256Digest>,
    binding: Binding<'_>,
    quote: &VerifiedQuote,
    checks: &mut Checks,
) {
    let (quote_bytes, freshness) = match binding {
        Binding::Connection { proof, .. } | Binding::GuestClient { proof, .. } => {
            (proof.quote.as_slice(), &proof.freshness)
        }
        Binding::KeyRelease { .. } | Binding::Document { .. } => (evidence.quote.as_slice(), &evidence.freshness),
    };
    checks.equal(QUOTE, &Sha256Digest::of(quote_bytes), quote.digest());
    match binding {
        Binding::KeyRelease { challenge, exporter } => {
            check_kind(freshness, kind_of(&binding), checks);
            let leaf = leaf(kind_of(&binding), evidence.role, challenge, exporter);
            check_path(&leaf, 0, 1, &[], freshness, checks);
            let absent = *evidence.hpke_key.as_bytes() == [0; 32];
            checks.add(!absent, HPKE_KEY, "an X25519 key", if absent { "zero" } else { "a key" });
        }
        Binding::Connection { proof, challenge, exporter, spki_sha256 }
        | Binding::GuestClient { proof, challenge, exporter, spki_sha256 } => {
            checks.equal(SPKI, spki_sha256, &evidence.spki_sha256);
            checks.equal(EVIDENCE_DIGEST, &proof.evidence, digest.unwrap_or(&Sha256Digest::ZERO));
            let kind = kind_of(&binding);
            check_kind(freshness, kind, checks);
            let leaf = leaf(kind, evidence.role, challenge, exporter);
            check_path(&leaf, proof.leaf_index, freshness.tree_size, &proof.path, freshness, checks);
        }
        Binding::Document { .. } => {}
    }
    check_report_data(evidence, binding, quote, checks);
}

/// What a fresh quote must say of itself to be one for this binding.
pub(crate) const fn kind_of(binding: &Binding<'_>) -> FreshnessKind {
    match binding {
        Binding::KeyRelease { .. } => FreshnessKind::KeyRelease,
        Binding::Connection { .. } => FreshnessKind::Tls,
        Binding::GuestClient { .. } => FreshnessKind::TlsClient,
        Binding::Document { .. } => FreshnessKind::None,
    }
}

pub(crate) fn leaf(kind: FreshnessKind, role: Role, challenge: &[u8; 32], exporter: &[u8; 32]) -> Leaf {
    Leaf { kind, role, challenge: *challenge, binding: *exporter }
}

fn check_kind(freshness: &Freshness, expected: FreshnessKind, checks: &mut Checks) {
    let name = |kind: FreshnessKind| format!("freshness kind {}", kind.code());
    checks.add(freshness.kind == expected, KIND, name(expected), name(freshness.kind));
}

fn check_path(leaf: &Leaf, index: u64, size: u64, path: &[Sha256Digest], freshness: &Freshness, checks: &mut Checks) {
    let result = if freshness.tree_size == size {
        verify_path(leaf, index, size, path, &freshness.root).map_err(|e| e.to_string())
    } else {
        Err(format!("a tree of {} leaves", freshness.tree_size))
    };
    let expected = "this connection's challenge and exporter as a leaf under the quoted root";
    checks.add(result.is_ok(), LEAF, expected, result.err().as_deref().unwrap_or("the leaf"));
}

fn check_report_data(evidence: &Evidence, binding: Binding<'_>, quote: &VerifiedQuote, checks: &mut Checks) {
    let inputs = ReportDataInputs::of(evidence).map(|inputs| match binding {
        Binding::Connection { proof, .. } | Binding::GuestClient { proof, .. } => ReportDataInputs {
            receipt_head: proof.receipt_head,
            receipt_count: proof.receipt_count,
            freshness: proof.freshness.clone(),
            ..inputs
        },
        Binding::KeyRelease { .. } | Binding::Document { .. } => inputs,
    });
    let found = hex(quote.report_data());
    match inputs {
        Ok(inputs) => {
            let expected = inputs.report_data();
            checks.add(expected == *quote.report_data(), REPORT_DATA, hex(&expected), found);
        }
        Err(error) => {
            checks.add(false, REPORT_DATA, format!("evidence with a canonical form ({error})"), found);
        }
    }
}

type Facts = (&'static str, &'static str, &'static str);
const QUOTE: Facts = ("quote_mismatch", "quote", "verify the quote that the evidence or the proof carries");
const SPKI: Facts =
    ("certificate_key_mismatch", "spki_sha256", "connect to the guest whose evidence this is, not through a relay");
const EVIDENCE_DIGEST: Facts = ("evidence_digest_mismatch", "evidence", "fetch the document that the proof names");
const KIND: Facts = ("freshness_kind", "freshness.kind", "ask for evidence of the right kind");
const LEAF: Facts = ("binding_mismatch", "freshness.root", "answer this challenge on this connection");
const HPKE_KEY: Facts = ("hpke_key_missing", "hpke_key", "make an HPKE key for this release");
const REPORT_DATA: Facts =
    ("report_data_mismatch", "report_data", "send the evidence that the guest's quote was made for, unchanged");
