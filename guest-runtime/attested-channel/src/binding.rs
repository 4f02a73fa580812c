// SPDX-License-Identifier: Apache-2.0
//! REPORTDATA and the GPU nonce: what a quote says about keys, GPUs, receipts and freshness.

use sha2::{Digest as _, Sha512};
use types::{CanonicalError, Evidence, Freshness, GpuEvidence, Hex32, Role, Sha256Digest, canonical};

/// Everything that REPORTDATA covers. Destructured without `..` when hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportDataInputs {
    /// What the guest is for.
    pub role: Role,
    /// SHA-256 of the DER SPKI of the guest's TLS key.
    pub spki_sha256: Sha256Digest,
    /// The Ed25519 key that signs receipts.
    pub instance_key: Hex32,
    /// The X25519 key for HPKE, zero where none exists.
    pub hpke_key: Hex32,
    /// [`gpu_digest`].
    pub gpu_digest: Sha256Digest,
    /// Hash of the newest receipt.
    pub receipt_head: Sha256Digest,
    /// Number of receipts.
    pub receipt_count: u64,
    /// What makes the quote fresh.
    pub freshness: Freshness,
}

impl ReportDataInputs {
    /// The inputs that an evidence document claims.
    ///
    /// # Errors
    /// [`CanonicalError`] when the GPU list has no canonical form.
    pub fn of(evidence: &Evidence) -> Result<Self, CanonicalError> {
        Ok(Self {
            role: evidence.role,
            spki_sha256: evidence.spki_sha256,
            instance_key: evidence.instance_key,
            hpke_key: evidence.hpke_key,
            gpu_digest: gpu_digest(&evidence.gpu)?,
            receipt_head: evidence.receipt_head,
            receipt_count: evidence.receipt_count,
            freshness: evidence.freshness.clone(),
        })
    }

    /// The 64 bytes of REPORTDATA:
    /// SHA-512(label ‖ role u8 ‖ SHA-256(SPKI) ‖ SHA-256(instance key) ‖ SHA-256(HPKE key) ‖ GPU digest ‖ receipt head
    /// ‖ receipt count u64 ‖ kind u8 ‖ tree size u64 ‖ root), integers big-endian, all lengths fixed.
    #[must_use]
    pub fn report_data(&self) -> [u8; 64] {
        let Self { role, spki_sha256, instance_key, hpke_key, gpu_digest, receipt_head, receipt_count, freshness } =
            self;
        let Freshness { kind, tree_size, root } = freshness;
        let mut hasher = Sha512::new();
        hasher.update(b"chrysalis/reportdata/v1");
        hasher.update([role.code()]);
        hasher.update(spki_sha256.as_bytes());
        hasher.update(Sha256Digest::of(instance_key.as_bytes()).as_bytes());
        hasher.update(Sha256Digest::of(hpke_key.as_bytes()).as_bytes());
        hasher.update(gpu_digest.as_bytes());
        hasher.update(receipt_head.as_bytes());
        hasher.update(receipt_count.to_be_bytes());
        hasher.update([kind.code()]);
        hasher.update(tree_size.to_be_bytes());
        hasher.update(root.as_bytes());
        hasher.finalize().into()
    }
}

/// SHA-256 of the canonical GPU evidence. Reports must be sorted by UUID; a verifier refuses another order.
///
/// # Errors
/// [`CanonicalError`] when a number is out of range.
pub fn gpu_digest(gpu: &GpuEvidence) -> Result<Sha256Digest, CanonicalError> {
    Ok(Sha256Digest::of(&canonical::to_bytes(gpu)?))
}

/// The nonce given to every GPU. It has no freshness root, so that there is no cycle with REPORTDATA.
#[must_use]
pub fn gpu_nonce(role: Role, instance_key: &Hex32, hpke_key: &Hex32, epoch: u64, random: &Hex32) -> Sha256Digest {
    Sha256Digest::of_parts(&[
        b"chrysalis/gpu-nonce/v1",
        &[role.code()],
        Sha256Digest::of(instance_key.as_bytes()).as_bytes(),
        Sha256Digest::of(hpke_key.as_bytes()).as_bytes(),
        &epoch.to_be_bytes(),
        random.as_bytes(),
    ])
}

/// SHA-256 of the DER `SubjectPublicKeyInfo` of an Ed25519 public key (RFC 8410 section 4).
#[must_use]
pub fn ed25519_spki_sha256(public_key: &Hex32) -> Sha256Digest {
    Sha256Digest::of_parts(&[&ED25519_SPKI_PREFIX, public_key.as_bytes()])
}

/// SEQUENCE { SEQUENCE { OID 1.3.101.112 }, BIT STRING (32 bytes) }.
const ED25519_SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs() -> ReportDataInputs {
        ReportDataInputs {
            role: Role::Inference,
            spki_sha256: Sha256Digest::of(b"spki"),
            instance_key: Hex32::new([1; 32]),
            hpke_key: Hex32::new([2; 32]),
            gpu_digest: Sha256Digest::of(b"gpu"),
            receipt_head: Sha256Digest::of(b"head"),
            receipt_count: 3,
            freshness: Freshness { kind: types::FreshnessKind::Tls, tree_size: 4, root: Sha256Digest::of(b"root") },
        }
    }

    #[test]
    fn every_field_changes_report_data() {
        let base = inputs().report_data();
        let changes: [fn(&mut ReportDataInputs); 10] = [
            |i| i.role = Role::KeyService,
            |i| i.spki_sha256 = Sha256Digest::ZERO,
            |i| i.instance_key = Hex32::default(),
            |i| i.hpke_key = Hex32::default(),
            |i| i.gpu_digest = Sha256Digest::ZERO,
            |i| i.receipt_head = Sha256Digest::ZERO,
            |i| i.receipt_count = 4,
            |i| i.freshness.kind = types::FreshnessKind::KeyRelease,
            |i| i.freshness.tree_size = 5,
            |i| i.freshness.root = Sha256Digest::ZERO,
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut changed = inputs();
            change(&mut changed);
            assert_ne!(changed.report_data(), base, "change {index}");
        }
    }
}
