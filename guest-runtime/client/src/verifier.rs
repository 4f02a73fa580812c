// SPDX-License-Identifier: Apache-2.0
//! Judges a guest's proof for one connection.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use appraise::{Accepted, Appraisal, Binding, GpuGrounds, Verdict, malformed_evidence};
use gpu_verify::GpuAnchors;
use tdx_verify::{Collateral, TrustAnchors, VerifiedQuote};
use types::{ConnectionProof, Document as _, Evidence, Sha256Digest};

use crate::{error::ClientError, policy::ClientPolicy};

/// Policy, trust anchors and the evidence documents seen so far.
#[derive(Debug)]
pub struct Verifier {
    policy: ClientPolicy,
    anchors: TrustAnchors,
    evidence: Mutex<HashMap<Sha256Digest, Arc<Evidence>>>,
}

/// What the verifier knows of a connection by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnSide<'a> {
    /// The challenge that was sent.
    pub(crate) challenge: &'a [u8; 32],
    /// The connection's exporter for it.
    pub(crate) exporter: &'a [u8; 32],
    /// Of the certificate that the handshake was signed with.
    pub(crate) spki_sha256: &'a Sha256Digest,
}

impl Verifier {
    /// A verifier that believes hardware under `anchors` alone.
    #[must_use]
    pub fn new(policy: ClientPolicy, anchors: TrustAnchors) -> Self {
        Self { policy, anchors, evidence: Mutex::default() }
    }

    /// The policy.
    #[must_use]
    pub const fn policy(&self) -> &ClientPolicy {
        &self.policy
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

    /// Judges a proof for a connection at `now` (seconds since 1970).
    pub(crate) fn judge(
        &self,
        proof: &ConnectionProof,
        evidence: &Evidence,
        own: OwnSide<'_>,
        now: u64,
    ) -> Result<(Accepted, Verdict), ClientError> {
        let OwnSide { challenge, exporter, spki_sha256 } = own;
        let quote = self.verify_quote(proof.quote.as_slice(), now)?;
        let appraisal = Appraisal {
            evidence,
            binding: Binding::Connection { proof, challenge, exporter, spki_sha256 },
            quote: &quote,
            releases: &self.policy.releases,
            policy: &self.policy.appraisal,
            rules: None,
            gpu: self.gpu_grounds(),
            now,
        };
        appraisal.accept().map_err(|verdict| ClientError::Refused(verdict.reasons()))
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

    fn verify_quote(&self, quote: &[u8], now: u64) -> Result<VerifiedQuote, ClientError> {
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
/// Evidence documents kept. A guest has one for as long as it runs.
const MAX_KNOWN: usize = 16;
