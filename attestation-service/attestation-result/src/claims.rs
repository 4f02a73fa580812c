// SPDX-License-Identifier: Apache-2.0
//! The claims of a token, made from a verdict.

use std::collections::BTreeMap;

use appraise::{Claims, Verdict};
use serde::{Deserialize, Serialize};
use tdx_verify::{Hardware, TcbStatus};
use types::{Refusal, Sha256Digest};

use crate::{
    token::MAX_SECONDS,
    trust::{APPROVED, APPROVED_BOOT, Tier, TrustVector, UNSAFE},
};

/// An attestation result. JSON names are those of draft-ietf-rats-ear-04; unknown ones are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttestationResult {
    /// [`AttestationResult::PROFILE`].
    pub eat_profile: String,
    /// Seconds since 1970 at which it was issued.
    pub iat: u64,
    /// Seconds since 1970 from which on it counts no more: at most [`MAX_SECONDS`] after `iat`.
    pub exp: u64,
    /// For whom it is, if for somebody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aud: Option<String>,
    /// SHA-256 of the challenge that the evidence answered, in hexadecimal; absent for a document alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eat_nonce: Option<String>,
    /// Who judged.
    pub ear_verifier_id: VerifierId,
    /// The worst status of the parts.
    pub ear_status: Tier,
    /// `tdx`, and `gpu` where the guest has GPUs.
    pub submods: BTreeMap<String, Submodule>,
}

/// The software that judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifierId {
    /// Who is responsible for it.
    pub developer: String,
    /// Its name and version.
    pub build: String,
}

/// One part of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submodule {
    /// What it comes to: never better than its vector.
    pub ear_status: Tier,
    /// Claims of AR4SI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ear_trustworthiness_vector: Option<TrustVector>,
    /// The policies, as `sha256:` and the digest of their bytes: the service's, then the owner's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ear_appraisal_policy_ids: Vec<String>,
    /// What this verifier adds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ear_verifier_claims: Option<VerifierClaims>,
}

/// Claims with the verifier's authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifierClaims {
    /// Whether the evidence was bound to a connection of the verifier. A document alone may be a copy: then no status is
    /// affirming.
    #[serde(rename = "chrysalis.bound")]
    pub bound: bool,
    /// Codes of all reasons for a refusal.
    #[serde(rename = "chrysalis.reasons", default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// What was established (`chrysalis/claims/v1`); absent where the quote was refused already.
    #[serde(rename = "chrysalis.claims", default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<Claims>,
}

/// What a result is issued with, beside the verdict.
#[derive(Debug, Clone, Copy)]
pub struct Issue<'a> {
    /// Digests of the policies that judged.
    pub policies: &'a [Sha256Digest],
    /// Name and version of the program.
    pub build: &'a str,
    /// SHA-256 of the challenge that the evidence answered.
    pub challenge: Option<Sha256Digest>,
    /// For whom it is.
    pub audience: Option<&'a str>,
    /// Seconds since 1970.
    pub now: u64,
    /// The last second that it may count; it ends after [`MAX_SECONDS`] in any case.
    pub until: u64,
}

impl AttestationResult {
    /// Value of `eat_profile`.
    pub const PROFILE: &str = "tag:ietf.org,2026:rats/ear#04";

    /// What a verdict comes to.
    #[must_use]
    pub fn of(verdict: &Verdict, issue: &Issue<'_>) -> Self {
        let claims = verdict.claims();
        if verdict.is_accepted() {
            return Self::accepted(claims, issue);
        }
        let mut parts = BTreeMap::from([("tdx", TrustVector::default())]);
        if claims.gpu.is_some() {
            parts.insert("gpu", TrustVector::default());
        }
        Self::make(parts, false, &verdict.reasons(), Some(claims), issue)
    }

    fn accepted(claims: &Claims, issue: &Issue<'_>) -> Self {
        let mut parts = BTreeMap::from([("tdx", tdx_vector(claims))]);
        if claims.gpu.is_some() {
            parts.insert("gpu", gpu_vector(claims));
        }
        Self::make(parts, true, &[], Some(claims), issue)
    }

    /// What a refusal without a verdict comes to: evidence, quote or collateral were refused before anything was compared.
    #[must_use]
    pub fn refused(reasons: &[Refusal], issue: &Issue<'_>) -> Self {
        Self::make(BTreeMap::from([("tdx", TrustVector::default())]), false, reasons, None, issue)
    }

    fn make(
        mut parts: BTreeMap<&str, TrustVector>,
        accepted: bool,
        reasons: &[Refusal],
        claims: Option<&Claims>,
        issue: &Issue<'_>,
    ) -> Self {
        let Issue { policies, build, challenge, audience, now, until } = *issue;
        for Refusal { code, field, .. } in reasons {
            let part = if is_of_gpu(code) { "gpu" } else { "tdx" };
            parts.entry(part).or_default().refuse(code, field);
        }
        let bound = claims.is_some_and(|claims| claims.bound);
        let policies: Vec<_> = policies.iter().map(|digest| format!("sha256:{digest}")).collect();
        let submods = parts.into_iter().map(|(name, vector)| {
            let gpu = name == "gpu";
            let mut codes: Vec<String> = reasons
                .iter()
                .filter(|reason| is_of_gpu(&reason.code) == gpu)
                .map(|reason| reason.code.clone())
                .collect();
            codes.dedup();
            // A part without a reason of its own is no better than the guest that it belongs to.
            let least = match (accepted, bound) {
                (false, _) => Tier::Contraindicated,
                (true, false) => Tier::Warning,
                (true, true) => Tier::None,
            };
            let made = Submodule {
                ear_status: vector.tier().max(least),
                ear_trustworthiness_vector: (vector != TrustVector::default()).then_some(vector),
                ear_appraisal_policy_ids: policies.clone(),
                ear_verifier_claims: Some(VerifierClaims {
                    bound,
                    reasons: codes,
                    claims: claims.filter(|_| !gpu).cloned(),
                }),
            };
            (name.to_owned(), made)
        });
        let submods: BTreeMap<_, _> = submods.collect();
        Self {
            eat_profile: Self::PROFILE.to_owned(),
            iat: now,
            exp: until.clamp(now.saturating_add(1), now.saturating_add(MAX_SECONDS)),
            aud: audience.map(str::to_owned),
            eat_nonce: challenge.map(|digest| digest.to_string()),
            ear_verifier_id: VerifierId { developer: DEVELOPER.to_owned(), build: build.to_owned() },
            ear_status: worst(&submods),
            submods,
        }
    }
}

/// The worst status of the parts.
pub(crate) fn worst(submods: &BTreeMap<String, Submodule>) -> Tier {
    submods.values().map(|submodule| submodule.ear_status).max().unwrap_or(Tier::None)
}

fn is_of_gpu(code: &str) -> bool {
    code.starts_with("gpu_") || code.starts_with("rim_")
}

/// Of an accepted guest.
fn tdx_vector(claims: &Claims) -> TrustVector {
    let platform = &claims.platform;
    let sound = platform.tcb_status == TcbStatus::UpToDate && platform.advisories.is_empty();
    let genuine = claims.hardware == Hardware::Tdx;
    let published = claims.acpi.as_deref() == Some("published");
    TrustVector {
        // Without a list of platforms or instances any genuine one was accepted: nothing is claimed of this one.
        instance_identity: (claims.instance.pinned && claims.bound).then_some(APPROVED),
        configuration: Some(if published { APPROVED } else { APPROVED_BOOT }),
        executables: Some(APPROVED_BOOT),
        hardware: Some(if genuine && sound { APPROVED } else { UNSAFE }),
        runtime_opaque: Some(if genuine { APPROVED } else { UNSAFE }),
    }
}

/// Of the GPUs of an accepted guest. Their memory is shielded, not encrypted, and that they sit in this guest's slots is not
/// established: nothing is claimed of either.
fn gpu_vector(claims: &Claims) -> TrustVector {
    let nvidia = claims.gpu.as_ref().is_some_and(|gpu| gpu.hardware == "nvidia");
    TrustVector {
        configuration: Some(APPROVED),
        executables: Some(APPROVED_BOOT),
        hardware: Some(if nvidia { APPROVED } else { UNSAFE }),
        ..TrustVector::default()
    }
}

const DEVELOPER: &str = "https://chrysalis.invalid";

#[cfg(test)]
mod tests {
    use super::*;

    fn of(change: impl FnOnce(&mut Claims)) -> AttestationResult {
        let example = include_str!("../../../docs/schemas/claims-v1.example.json");
        let mut claims: Claims = serde_json::from_str(example).unwrap();
        change(&mut claims);
        let issue =
            Issue { policies: &[], build: "test 1", challenge: None, audience: None, now: claims.now, until: u64::MAX };
        AttestationResult::accepted(&claims, &issue)
    }

    /// Only hardware of its maker, up to date, bound to a connection, is affirmed.
    #[test]
    fn what_an_accepted_guest_earns() {
        let good = of(|_| ());
        assert_eq!((good.ear_status, good.submods.len()), (Tier::Affirming, 2));
        let vector = good.submods["tdx"].ear_trustworthiness_vector.unwrap();
        assert_eq!(vector.instance_identity, Some(2));
        assert!(good.submods["gpu"].ear_verifier_claims.as_ref().unwrap().claims.is_none(), "they stand in one place");
        let copy = of(|claims| claims.bound = false);
        assert!(copy.submods.values().all(|submodule| submodule.ear_status == Tier::Warning));
        assert_eq!(copy.submods["tdx"].ear_trustworthiness_vector.unwrap().instance_identity, None);
        let any = of(|claims| claims.instance.pinned = false);
        assert_eq!(any.submods["tdx"].ear_trustworthiness_vector.unwrap().instance_identity, None);
        for (name, result) in [
            ("simulated", of(|claims| claims.hardware = Hardware::Simulated)),
            ("old", of(|claims| claims.platform.tcb_status = TcbStatus::OutOfDate)),
            ("advisory", of(|claims| claims.platform.advisories = vec!["INTEL-SA-00837".to_owned()])),
            ("GPU", of(|claims| claims.gpu.as_mut().unwrap().hardware = "custom".to_owned())),
        ] {
            assert_eq!(result.ear_status, Tier::Warning, "{name}");
        }
        let weak = of(|claims| claims.acpi = Some("from-event-log".to_owned()));
        assert_eq!(weak.submods["tdx"].ear_trustworthiness_vector.unwrap().configuration, Some(3));
    }
}
