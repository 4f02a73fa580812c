// SPDX-License-Identifier: Apache-2.0
//! A guest: release, quote, registers, configuration, GPUs, and what it is bound to.

use appraise::{Appraisal, Binding, GpuGrounds, Policy, malformed_evidence};
use gpu_verify::RimLibrary;
use types::{ConnectionProof, Document as _, Evidence, Refusal};

use crate::{
    Anchors, BindingRequest, GuestRequest,
    answer::{Answer, Decided, refuse, shown},
    gpus, quote, release_bundle,
};

pub(crate) fn decide(request: Box<GuestRequest>, anchors: &Anchors, at: u64) -> Answer {
    let GuestRequest { evidence, binding, collateral, policy, trust, releases, rims, ocsp } = *request;
    let policy = checked(&policy)?;
    let releases = read_releases(&releases, &trust, at)?;
    let collateral = quote::read_collateral(&collateral)?;
    let rims = RimLibrary::new(rims.into_iter().map(String::into_bytes).collect()).map_err(|error| {
        refuse("rim_malformed", "rims", error, "fetch the manifest again from NVIDIA's RIM service")
    })?;
    let ocsp = gpus::answers(ocsp)?;
    let evidence = Evidence::from_canonical(evidence.as_bytes()).map_err(|error| vec![malformed_evidence(&error)])?;
    let proof;
    let (binding, quoted) = match &binding {
        BindingRequest::Connection { proof: text, challenge, exporter, spki_sha256 } => {
            proof = read_proof(text)?;
            let (challenge, exporter) = (challenge.as_bytes(), exporter.as_bytes());
            (Binding::Connection { proof: &proof, challenge, exporter, spki_sha256 }, proof.quote.as_slice())
        }
        BindingRequest::KeyRelease { challenge, exporter } => {
            let (challenge, exporter) = (challenge.as_bytes(), exporter.as_bytes());
            (Binding::KeyRelease { challenge, exporter }, evidence.quote.as_slice())
        }
        BindingRequest::Document { moment } => {
            (Binding::Document { moment: (*moment).into() }, evidence.quote.as_slice())
        }
    };
    let quote = quote::verify(quoted, &collateral, anchors, at, &policy.platform)?;
    let verdict = Appraisal {
        evidence: &evidence,
        binding,
        quote: &quote,
        releases: &releases,
        policy: &policy,
        rules: None,
        gpu: GpuGrounds { anchors: &anchors.gpus, rims: &rims, ocsp: &ocsp },
        now: at,
    }
    .appraise();
    Ok(Decided { accepted: verdict.is_accepted(), reasons: verdict.reasons(), result: shown(&verdict) })
}

/// The same rules as for a policy that stands in a file of its own.
fn checked(policy: &Policy) -> Result<Policy, Vec<Refusal>> {
    let refuse = |rule: String| refuse("policy_malformed", "policy", rule, "correct the policy");
    let bytes = serde_json::to_vec(policy).map_err(|error| refuse(error.to_string()))?;
    Policy::from_json(&bytes).map_err(|error| refuse(error.to_string()))
}

fn read_releases(bundles: &[String], trust: &str, at: u64) -> Result<Vec<release::VerifiedRelease>, Vec<Refusal>> {
    if bundles.len() > MAX_RELEASES {
        let rule = format!("at most {MAX_RELEASES} releases, found {}", bundles.len());
        return Err(refuse("request_malformed", "releases", rule, "name the releases that a guest may run"));
    }
    let trust = release_bundle::read_trust(trust)?;
    bundles.iter().map(|bundle| release_bundle::verify(bundle, &trust, at)).collect()
}

fn read_proof(text: &str) -> Result<ConnectionProof, Vec<Refusal>> {
    let fix = "send the canonical proof, as the guest gave it";
    ConnectionProof::from_canonical(text.as_bytes())
        .map_err(|error| refuse("proof_malformed", "binding.connection.proof", error, fix))
}

/// Releases in one request.
const MAX_RELEASES: usize = 64;
