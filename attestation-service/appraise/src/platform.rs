// SPDX-License-Identifier: Apache-2.0
//! The quote and its platform, as checks of the verdict.
//!
//! `tdx_verify` made them already, or there would be no [`VerifiedQuote`]. What depends on policy is judged here once more:
//! so a quote that was verified under another policy than the appraisal's is not accepted by it.

use tdx_spec::QuoteVersion;
use tdx_verify::{ATTRIBUTES_ALLOWED, PlatformPolicy, QuoteFault, VerifiedQuote, XFAM_ALLOWED, XFAM_REQUIRED};

use crate::{claims::hex, verdict::Checks};

pub(crate) fn check(quote: &VerifiedQuote, policy: &PlatformPolicy, now: u64, checks: &mut Checks) {
    let current = now <= quote.collateral_expires();
    let expected = format!(
        "certificates, revocation lists and signatures that verify under the root of {} at {now}",
        quote.hardware()
    );
    checks.add(current, SIGNATURE, expected, format!("they do until {}", quote.collateral_expires()));
    let attributes = quote.td_attributes();
    let allowed = attributes.outside(ATTRIBUTES_ALLOWED) == 0;
    checks.add(allowed, ATTRIBUTES, "SEPT_VE_DISABLE, PKS", hex(&attributes.bits().to_le_bytes()));
    let xfam = quote.xfam();
    let allowed = xfam.outside(XFAM_ALLOWED) == 0 && xfam.bits() & XFAM_REQUIRED == XFAM_REQUIRED;
    checks.add(allowed, XFAM, "x87, SSE; also AVX, AVX-512, PKRU, CET, AMX", hex(&xfam.bits().to_le_bytes()));
    let tcb = quote.tcb();
    let faults = policy.judge(quote.version(), tcb, quote.platform(), now);
    let minimum = policy.min_tcb_evaluation_data_number;
    rule(&faults, EVALUATION, format!("{minimum} or later"), tcb.evaluation_data_number, checks);
    let accepted: Vec<_> = policy.tcb.iter().map(|accepted| accepted.status.as_str()).collect();
    rule(&faults, STATUS, accepted.join(" or "), tcb.status, checks);
    let found = if tcb.advisories.is_empty() { "none".to_owned() } else { tcb.advisories.join(" ") };
    rule(&faults, ADVISORY, "no advisory that the policy refuses", found, checks);
    let version = match quote.version() {
        QuoteVersion::V4 => 4,
        QuoteVersion::V5 => 5,
    };
    rule(&faults, VERSION, "a version that the policy takes", version, checks);
    let expected = if policy.platforms.is_some() { "a platform of the policy's list" } else { "any platform" };
    rule(&faults, PLATFORM, expected, quote.platform(), checks);
}

/// One rule of the policy; it failed where one of its codes is among the faults.
fn rule(
    faults: &[QuoteFault],
    (codes, field, fix): (&[&'static str], &str, &'static str),
    expected: impl core::fmt::Display,
    found: impl core::fmt::Display,
    checks: &mut Checks,
) {
    let failed = faults.iter().map(QuoteFault::code).find(|code| codes.contains(code));
    let code = failed.or_else(|| codes.first().copied()).unwrap_or("platform");
    checks.add(failed.is_none(), (code, field, fix), expected, found);
}

type Facts = (&'static str, &'static str, &'static str);
type Rule = (&'static [&'static str], &'static str, &'static str);
const SIGNATURE: Facts = ("collateral_expired", "quote", "verify the quote at the time of the appraisal");
const ATTRIBUTES: Facts =
    ("tdx_attributes", "td_attributes", "launch the guest with no attribute but SEPT_VE_DISABLE and PKS");
const XFAM: Facts = ("tdx_xfam", "xfam", "launch the guest with a processor model of the release");
const EVALUATION: Rule = (&["collateral_rollback"], "collateral.tcb_evaluation_data_number", "fetch newer collateral");
const STATUS: Rule = (
    &["tcb_status", "tcb_out_of_date", "tcb_grace_ended"],
    "tcb.status",
    "update the platform's microcode and TDX module",
);
const ADVISORY: Rule = (&["tcb_advisory"], "tcb.advisories", "apply the advisory's update, or accept it by policy");
const VERSION: Rule =
    (&["quote_version_not_allowed"], "quote.header.version", "make a quote of a version that the policy takes");
const PLATFORM: Rule =
    (&["platform_not_allowed"], "platform", "use a platform of the list, or add this one to the policy");
