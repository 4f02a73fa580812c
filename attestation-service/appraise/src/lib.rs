// SPDX-License-Identifier: Apache-2.0
//! Appraises evidence against releases and policy.
//!
//! The attestation service uses it before a key release and clients before they speak to a guest: the same rules,
//! in the same order, at two moments of a boot. Pure: bytes, the verified quote, the verifier's own connection
//! binding and the time are arguments.

mod binding;
mod claims;
mod config;
mod firmware_log;
mod gpus;
mod platform;
mod policy;
mod quote_of_many;
mod registers;
mod rules;
mod runtime;
mod verdict;

use release::VerifiedRelease;
use tdx_verify::VerifiedQuote;
use types::{Document as _, Evidence, Refusal, RegisterName};

pub use binding::Binding;
pub use claims::{
    Claims, ConfigClaims, GpuClaims, InstanceClaims, MachineClaims, PlatformClaims, ReleaseClaims, TdClaims, TimeClaims,
};
pub use gpus::GpuGrounds;
pub use policy::{AcpiRule, MAX_POLICY_LEN, Policy, PolicyError};
pub use quote_of_many::AcceptedQuote;
pub use rules::{MAX_RULES, RuleEngine, RuleOutcome, RuleReason, RuleSource, Rules};
pub use verdict::{Accepted, Check, RegisterCheck, Verdict};

/// What is appraised, and against what.
#[derive(Debug, Clone, Copy)]
pub struct Appraisal<'a> {
    /// The guest's evidence document.
    pub evidence: &'a Evidence,
    /// What it must be bound to.
    pub binding: Binding<'a>,
    /// The verified fresh quote: the proof's for a connection, otherwise the evidence's own.
    pub quote: &'a VerifiedQuote,
    /// Releases that may explain the registers, each verified by signer and log.
    pub releases: &'a [VerifiedRelease],
    /// What is demanded.
    pub policy: &'a Policy,
    /// The policy's own rules, made from its part `rules`. A policy that has some is not met without.
    pub rules: Option<&'a dyn Rules>,
    /// What evidence of GPUs is judged by.
    pub gpu: GpuGrounds<'a>,
    /// Seconds since 1970.
    pub now: u64,
}

impl Appraisal<'_> {
    /// Makes every check and collects all independent reasons for a refusal, in this order: platform, quote and binding,
    /// REPORTDATA, MRCONFIGID, MROWNER, MROWNERCONFIG, release, MRTD and RTMR0 to RTMR2, RTMR3, configuration,
    /// GPUs, time. Every register is compared by name, exactly once. The policy's own rules come last, and only where
    /// everything before them passed.
    pub fn appraise(&self) -> Verdict {
        let Self { evidence, binding, quote, releases, policy, rules, gpu, now } = *self;
        let mut checks = verdict::Checks::default();
        platform::check(quote, &policy.platform, now, &mut checks);
        let digest = evidence.digest().ok();
        binding::check(evidence, digest.as_ref(), binding, quote, &mut checks);
        let config = config::check_identity(evidence, quote, &mut checks);
        let mut compared = None;
        let mut gpus = None;
        if let Some(config) = &config {
            let measured = registers::Measured {
                shape: &config.shape.0,
                role: config.role.0,
                quote,
                firmware_log: evidence.firmware_log.as_ref().map(types::Base64::as_slice),
            };
            compared = registers::check(measured, releases, policy, now, &mut checks);
            runtime::check(evidence, config, binding.moment(), quote, &mut checks);
            config::check_policy(evidence, config, policy, &mut checks);
            gpus = gpus::check(evidence, config.gpus.0, policy.gpu.as_ref(), gpu, now, &mut checks);
            let release = compared.map(|compared| compared.release);
            config::check_time(evidence, config, release, binding, now, &mut checks);
        }
        let release = compared.map(|compared| compared.release);
        checks.registers.sort_by_key(|register| register.name);
        let complete = checks.registers.iter().map(|register| register.name).eq(RegisterName::ALL);
        // Whatever is missing was said above; if it was not, nothing may pass.
        if checks.all_passed() {
            let compared = checks.registers.len();
            let found =
                format!("{} and {compared} registers", if release.is_some() { "a release" } else { "no release" });
            checks.add(complete && release.is_some(), INCOMPLETE, "a release, and every register compared once", found);
        }
        let claims = claims::make(&claims::Sources {
            evidence,
            evidence_digest: digest,
            binding,
            quote,
            policy,
            config: config.as_ref(),
            compared,
            gpu: gpus.as_ref(),
            now,
        });
        if checks.all_passed() {
            rules::check(policy.rules.as_ref(), rules, &claims, &mut checks);
        }
        let accepted = checks.all_passed();
        let verdict::Checks { list, registers } = checks;
        let gpus_until = gpus.as_ref().map_or(u64::MAX, gpu_verify::GpuSummary::expires);
        let valid_until = release.map_or(now, |release| release.values().validity.not_after);
        Verdict {
            accepted,
            hardware: quote.hardware(),
            moment: claims::moment_name(binding.moment()),
            bound: binding.is_connection(),
            instance: if policy.pins_instance() { "pinned" } else { "any" },
            acpi: compared.map(|compared| compared.acpi.as_str()),
            checks: list,
            registers,
            evidence: digest,
            release: release.map(|release| *release.digest()),
            model: config.map(|config| config.model.0),
            instance_key: evidence.instance_key,
            platform: *quote.platform(),
            tcb: quote.tcb().clone(),
            gpu: gpus,
            claims: Box::new(claims),
            expires: now
                .saturating_add(VERDICT_SECONDS)
                .min(quote.collateral_expires())
                .min(valid_until)
                .min(gpus_until),
        }
    }

    /// Appraises and gives the proof of acceptance that the next step of a protocol takes.
    ///
    /// # Errors
    /// The verdict, when a check failed or the evidence was not bound to a connection.
    pub fn accept(&self) -> Result<(Accepted, Verdict), Box<Verdict>> {
        let verdict = self.appraise();
        let challenge = match self.binding {
            Binding::KeyRelease { challenge, .. }
            | Binding::Connection { challenge, .. }
            | Binding::GuestClient { challenge, .. } => Some(*challenge),
            Binding::Document { .. } => None,
        };
        match (&verdict.evidence, &verdict.release, &verdict.model, challenge) {
            (Some(evidence), Some(release), Some(model), Some(challenge)) if verdict.accepted => {
                let accepted = Accepted {
                    moment: self.binding.moment(),
                    evidence: *evidence,
                    release: *release,
                    model: model.clone(),
                    instance_key: verdict.instance_key,
                    hpke_key: self.evidence.hpke_key,
                    platform: verdict.platform,
                    challenge,
                    expires: verdict.expires,
                };
                Ok((accepted, verdict))
            }
            _ => Err(Box::new(verdict)),
        }
    }
}

/// The reason for evidence that is not even a document of the right form.
#[must_use]
pub fn malformed_evidence(error: &types::CanonicalError) -> Refusal {
    Refusal::new("evidence_malformed", "evidence", error.to_string(), "send the canonical evidence document")
}

/// How long a verdict lasts at most, in seconds.
pub const VERDICT_SECONDS: u64 = 600;

const INCOMPLETE: (&str, &str, &str) =
    ("verdict_incomplete", "registers", "report this: no check said what is missing");
