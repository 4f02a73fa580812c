// SPDX-License-Identifier: Apache-2.0
//! Judges a guest's proof for one connection.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use appraise::{Accepted, AcceptedQuote, Appraisal, Binding, GpuGrounds, Verdict, malformed_evidence};
use gpu_verify::GpuAnchors;
use tdx_verify::{Collateral, TrustAnchors, VerifiedQuote};
use types::{ConnectionProof, Document as _, Evidence, Sha256Digest};

use crate::{error::ClientError, policy::ClientPolicy, receipts::ReceiptBook};

/// Policy, trust anchors, the receipts and the evidence documents seen so far.
#[derive(Debug)]
pub struct Verifier {
    policy: ClientPolicy,
    anchors: TrustAnchors,
    book: Arc<ReceiptBook>,
    evidence: Mutex<HashMap<Sha256Digest, Arc<Evidence>>>,
    last: Mutex<Option<KnownQuote>>,
    /// What the newest proof was accepted as. Policy and releases of a verifier never change either.
    accepted: Mutex<Option<Arc<AcceptedQuote>>>,
}

/// A quote that was accepted. Collateral, anchors and policy of a verifier never change, so for the same bytes in the same
/// second the answer is the same.
#[derive(Debug)]
struct KnownQuote {
    bytes: Vec<u8>,
    at: u64,
    verified: VerifiedQuote,
}

/// Which side of a connection a guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestSide {
    /// It was connected to.
    Server,
    /// It connected.
    Client,
}

/// What a guest gave for a connection, and what the verifier knows of that connection by itself.
#[derive(Debug, Clone, Copy)]
pub struct GuestProof<'a> {
    /// The canonical evidence document.
    pub evidence: &'a [u8],
    /// The canonical [`ConnectionProof`].
    pub proof: &'a [u8],
    /// The challenge that was sent.
    pub challenge: &'a [u8; 32],
    /// The connection's exporter for it, of the verifier's own end.
    pub exporter: &'a [u8; 32],
    /// SHA-256 of the SPKI of the certificate that the guest signed the handshake with.
    pub spki_sha256: &'a Sha256Digest,
}

/// What the verifier knows of a connection by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnSide<'a> {
    /// Which side the guest is.
    pub(crate) guest: GuestSide,
    /// The challenge that was sent.
    pub(crate) challenge: &'a [u8; 32],
    /// The connection's exporter for it.
    pub(crate) exporter: &'a [u8; 32],
    /// Of the certificate that the handshake was signed with.
    pub(crate) spki_sha256: &'a Sha256Digest,
}

impl Verifier {
    /// A verifier that believes hardware under `anchors` alone. It remembers receipts and proofs as long as it lives.
    #[must_use]
    pub fn new(policy: ClientPolicy, anchors: TrustAnchors) -> Self {
        Self::with_book(policy, anchors, ReceiptBook::default())
    }

    /// A verifier that compares guests with what `book` knows, and adds to it.
    #[must_use]
    pub fn with_book(policy: ClientPolicy, anchors: TrustAnchors, book: ReceiptBook) -> Self {
        Self::of(policy, anchors, Arc::new(book))
    }

    /// A verifier of the same hardware by another policy. Both know the same receipts.
    #[must_use]
    pub fn judging_by(&self, policy: ClientPolicy) -> Self {
        Self::of(policy, self.anchors.clone(), Arc::clone(&self.book))
    }

    fn of(policy: ClientPolicy, anchors: TrustAnchors, book: Arc<ReceiptBook>) -> Self {
        let (evidence, last, accepted) = Default::default();
        Self { policy, anchors, book, evidence, last, accepted }
    }

    /// The policy.
    #[must_use]
    pub const fn policy(&self) -> &ClientPolicy {
        &self.policy
    }

    /// Receipts, and what proofs say of them.
    pub(crate) const fn book(&self) -> &Arc<ReceiptBook> {
        &self.book
    }

    /// An evidence document seen before.
    pub(crate) fn known(&self, digest: &Sha256Digest) -> Option<Arc<Evidence>> {
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    /// Reads a document that was fetched by its digest, and keeps it.
    pub(crate) fn learn(&self, digest: &Sha256Digest, bytes: &[u8]) -> Result<Arc<Evidence>, ClientError> {
        let found = Sha256Digest::of(bytes);
        if found != *digest {
            let detail = format!("expected SHA-256 {digest}; found {found}");
            return Err(ClientError::refuse("evidence_digest_mismatch", "evidence", detail, FETCH_AGAIN));
        }
        let evidence =
            Evidence::from_canonical(bytes).map_err(|error| ClientError::Refused(vec![malformed_evidence(&error)]))?;
        let evidence = Arc::new(evidence);
        let mut known = self.evidence.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(*digest, Arc::clone(&evidence));
        Ok(evidence)
    }

    /// Judges a proof for a connection at `now` (seconds since 1970). A proof by a quote that was accepted in the same second
    /// is compared with the one that was.
    pub(crate) fn judge(
        &self,
        proof: &ConnectionProof,
        evidence: &Evidence,
        own: OwnSide<'_>,
        now: u64,
    ) -> Result<(Accepted, Arc<Verdict>), ClientError> {
        let OwnSide { guest, challenge, exporter, spki_sha256 } = own;
        let binding = match guest {
            GuestSide::Server => Binding::Connection { proof, challenge, exporter, spki_sha256 },
            GuestSide::Client => Binding::GuestClient { proof, challenge, exporter, spki_sha256 },
        };
        let known = self.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known
            && let Some(accepted) = known.for_other(binding, now)
        {
            return Ok((accepted, Arc::clone(known.verdict())));
        }
        let quote = self.verify_quote(proof.quote.as_slice(), now)?;
        let appraisal = Appraisal {
            evidence,
            binding,
            quote: &quote,
            releases: &self.policy.releases,
            policy: &self.policy.appraisal,
            rules: None,
            gpu: self.gpu_grounds(),
            now,
        };
        let judged = appraisal.accept_quote().map_err(|verdict| ClientError::Refused(verdict.reasons()))?;
        let (accepted, verdict) = (judged.accepted().clone(), Arc::clone(judged.verdict()));
        *self.accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(judged));
        Ok((accepted, verdict))
    }

    /// Judges what a guest on the given side of a connection gave, at `now` (seconds since 1970). A proof of one side is
    /// refused for the other.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with all independent reasons.
    pub fn judge_guest(
        &self,
        guest: GuestSide,
        given: GuestProof<'_>,
        now: u64,
    ) -> Result<(Accepted, Arc<Verdict>, Arc<Evidence>), ClientError> {
        let GuestProof { evidence, proof, challenge, exporter, spki_sha256 } = given;
        let proof = ConnectionProof::from_canonical(proof).map_err(|error| {
            ClientError::refuse("proof_malformed", "proof", error.to_string(), "send the canonical proof")
        })?;
        let evidence = match self.known(&proof.evidence) {
            Some(known) => known,
            None => self.learn(&proof.evidence, evidence)?,
        };
        let own = OwnSide { guest, challenge, exporter, spki_sha256 };
        let (accepted, verdict) = self.judge(&proof, &evidence, own, now)?;
        Ok((accepted, verdict, evidence))
    }

    /// Judges a document on its own, for a receipt that is looked at later. No connection is proven by it.
    pub(crate) fn judge_document(&self, evidence: &Evidence, now: u64) -> Result<Verdict, ClientError> {
        let quote = self.verify_quote(evidence.quote.as_slice(), now)?;
        let verdict = Appraisal {
            evidence,
            binding: Binding::Document { moment: attested_channel::Moment::Serving },
            quote: &quote,
            releases: &self.policy.releases,
            policy: &self.policy.appraisal,
            rules: None,
            gpu: self.gpu_grounds(),
            now,
        }
        .appraise();
        if verdict.is_accepted() { Ok(verdict) } else { Err(ClientError::Refused(verdict.reasons())) }
    }

    /// NVIDIA's devices, by the manifests that the policy file names.
    fn gpu_grounds(&self) -> GpuGrounds<'_> {
        let ClientPolicy { gpu_rims, gpu_ocsp, .. } = &self.policy;
        GpuGrounds { anchors: &const { GpuAnchors::nvidia() }, rims: gpu_rims, ocsp: gpu_ocsp }
    }

    /// One quote serves every connection that is proven with it: it is verified once in a second, not once for each.
    fn verify_quote(&self, quote: &[u8], now: u64) -> Result<VerifiedQuote, ClientError> {
        if let Some(known) = &*self.last.lock().unwrap_or_else(PoisonError::into_inner)
            && known.at == now
            && known.bytes == quote
        {
            return Ok(known.verified.clone());
        }
        let verified = self.verify_new_quote(quote, now)?;
        let known = KnownQuote { bytes: quote.to_vec(), at: now, verified: verified.clone() };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        Ok(verified)
    }

    fn verify_new_quote(&self, quote: &[u8], now: u64) -> Result<VerifiedQuote, ClientError> {
        let Some(collateral) = Collateral::select(&self.policy.collateral, quote) else {
            if let Some(refused) = tdx_verify::unreadable(quote) {
                return Err(ClientError::Refused(refused.refusals()));
            }
            let detail = "no collateral of the policy is for the platform of this quote";
            let fix = "name a collateral file for this kind of platform in the policy";
            return Err(ClientError::refuse("collateral_missing", "collateral", detail, fix));
        };
        tdx_verify::verify(quote, collateral, &self.anchors, now, &self.policy.appraisal.platform)
            .map_err(|refused| ClientError::Refused(refused.refusals()))
    }
}

/// Seconds since 1970 by this machine's clock.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

const FETCH_AGAIN: &str = "fetch the document that the proof names";
/// Evidence documents kept. A guest has a new one with each renewal of its TLS key.
const MAX_KNOWN: usize = 16;

#[cfg(test)]
mod tests {
    use appraise::Policy;
    use tdx_sim::{SimulatedPlatform, SimulatedTd};
    use types::{Registers, Sha384Digest};

    use super::*;

    fn quote_and_verifier(now: u64) -> (Vec<u8>, Verifier) {
        let platform = Arc::new(SimulatedPlatform::generate(now).unwrap());
        let policy = ClientPolicy {
            appraisal: Policy::any_release(),
            releases: Vec::new(),
            collateral: vec![
                Collateral::from_json(platform.collateral(now, None).unwrap().to_json().as_ref()).unwrap(),
            ],
            gpu_rims: Default::default(),
            gpu_ocsp: Vec::new(),
        };
        let verifier = Verifier::new(policy, TrustAnchors::custom(platform.root_der().to_vec()));
        let same = Sha384Digest::from_bytes([1; 48]);
        let registers = Registers {
            mr_td: same,
            rtmr_0: same,
            rtmr_1: same,
            rtmr_2: same,
            rtmr_3: same,
            mr_config_id: same,
            mr_owner: same,
            mr_owner_config: same,
        };
        (SimulatedTd::new(platform, registers).quote([7; 64]).unwrap(), verifier)
    }

    #[test]
    fn only_the_same_bytes_in_the_same_second_are_known() {
        let now = unix_now();
        let (quote, verifier) = quote_and_verifier(now);
        let digest = *verifier.verify_quote(&quote, now).unwrap().digest();
        // What is signed: the header and the body.
        for at in (0..48 + 584).step_by(31) {
            let mut changed = quote.clone();
            changed[at] ^= 1;
            assert!(verifier.verify_quote(&changed, now).is_err(), "byte {at}");
        }
        assert!(verifier.verify_quote(&quote[..quote.len() - 1], now).is_err());
        let years = 20 * 365 * 86_400;
        assert!(verifier.verify_quote(&quote, now + years).is_err(), "the collateral has expired");
        assert_eq!(*verifier.verify_quote(&quote, now).unwrap().digest(), digest);
    }

    #[test]
    fn what_is_known_is_not_verified_again_within_the_second() {
        let now = unix_now();
        let (quote, verifier) = quote_and_verifier(now);
        let verified = verifier.verify_quote(&quote, now).unwrap();
        // Bytes that no verification accepts show which path was taken.
        let known = KnownQuote { bytes: b"no quote".to_vec(), at: now, verified };
        *verifier.last.lock().unwrap() = Some(known);
        assert!(verifier.verify_quote(b"no quote", now).is_ok());
        assert!(verifier.verify_quote(b"no quote", now + 1).is_err());
    }
}
