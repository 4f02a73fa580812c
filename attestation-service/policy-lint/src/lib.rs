// SPDX-License-Identifier: Apache-2.0
//! Says what is wrong, weak or without effect in an appraisal policy (`chrysalis/appraisal-policy/v1`), before it counts.
//!
//! An error is what a service refuses: nothing here is stricter or laxer than [`Policy::from_json`] and the compiler of rules. A warning is a
//! policy that works, and perhaps not as its author thinks. Pure: bytes, releases and the time are arguments.

mod finding;
mod gpu;
mod lists;
mod locate;
mod platform;
mod rules;

use appraise::{AcpiRule, MAX_POLICY_LEN, Policy};
use release::VerifiedRelease;
use types::Sha256Digest;

use finding::Findings;
pub use finding::{Finding, Report, Severity};

/// The JSON Schema (draft 2020-12) of appraisal policies. It accepts what [`Policy::from_json`] does, but for the number of
/// bytes, fields that stand twice, and numbers written with a fraction or an exponent, which no schema can see.
pub const SCHEMA: &str = include_str!("../../../docs/schemas/appraisal-policy-v1.schema.json");

/// Lints the bytes of a policy at `now` (seconds since 1970). `releases` are those that guests are to run, as far as they are
/// known here: none for not known.
pub fn lint(bytes: &[u8], releases: &[VerifiedRelease], now: u64) -> Report {
    let mut findings = Findings::default();
    let policy = match Policy::from_json(bytes) {
        Ok(policy) => policy,
        Err(error) => {
            let pointer = locate::pointer(bytes, &error);
            findings.error("policy_malformed", &pointer, error.to_string(), locate::fix(&error));
            return findings.report();
        }
    };
    if bytes.len() > MAX_POLICY_LEN / 2 {
        let detail = format!("{} of at most {MAX_POLICY_LEN} bytes", bytes.len());
        findings.warn("policy_large", "", detail, "name fewer platforms, releases or instances");
    }
    platform::lint(&policy.platform, now, &mut findings);
    lists::lint(&policy, &mut findings);
    gpu::lint(policy.gpu.as_ref(), &mut findings);
    if policy.acpi == AcpiRule::FromEventLog {
        let detail = "the host may have given the guest any ACPI tables";
        findings.warn(
            "acpi_from_event_log",
            "/acpi",
            detail,
            "publish ACPI references of the machines, and leave acpi out",
        );
    }
    rules::lint(policy.rules.as_ref(), &mut findings);
    against_releases(&policy, releases, now, &mut findings);
    findings.report()
}

/// What the policy says of releases that are known.
fn against_releases(policy: &Policy, releases: &[VerifiedRelease], now: u64, findings: &mut Findings) {
    if releases.is_empty() {
        return;
    }
    let usable = |release: &&VerifiedRelease| {
        let digest: &Sha256Digest = release.digest();
        policy.releases.as_ref().is_none_or(|list| list.contains(digest))
            && !policy.revoked_releases.contains(digest)
            && release.is_valid_at(now)
    };
    for (index, digest) in policy.releases.iter().flatten().enumerate() {
        match releases.iter().find(|release| release.digest() == digest) {
            None => {
                let detail = format!("{digest} is not among the given releases");
                findings.warn(
                    "release_not_given",
                    &format!("/releases/{index}"),
                    detail,
                    "give its bundle, or correct the digest",
                );
            }
            Some(release) if !release.is_valid_at(now) => {
                let end = release.values().validity.not_after;
                let detail = format!("{digest} is valid until {end} s since 1970 only, or not yet");
                findings.warn(
                    "release_not_valid_now",
                    &format!("/releases/{index}"),
                    detail,
                    "accept its successor, too",
                );
            }
            Some(_) => {}
        }
    }
    let Some(release) = releases.iter().find(usable) else {
        findings.warn("release_none_accepted", "/releases", "no given release is accepted now", "accept one of them");
        return;
    };
    let served = releases.iter().filter(usable).flat_map(|release| &release.values().tcb_statuses);
    let served: Vec<String> = served.map(|status| serde_name(*status)).collect();
    for (index, accepted) in policy.platform.tcb.iter().enumerate() {
        if !served.iter().any(|name| name == accepted.status.as_str()) {
            let detail = format!("no accepted release allows {}, as {} does not", accepted.status, release.digest());
            let fix = "leave the status out: the release decides, too";
            findings.warn("tcb_without_effect", &format!("/platform/tcb/{index}"), detail, fix);
        }
    }
}

/// The name of a status in documents.
fn serde_name(status: release::TcbStatus) -> String {
    serde_json::to_value(status).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
