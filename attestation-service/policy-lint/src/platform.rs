// SPDX-License-Identifier: Apache-2.0
//! The part about platforms.

use tdx_spec::QuoteVersion;
use tdx_verify::{AcceptedTcb, PlatformPolicy, TcbStatus};

use crate::{finding::Findings, lists::repeated};

pub(crate) fn lint(platform: &PlatformPolicy, now: u64, findings: &mut Findings) {
    // A new field must be handled here.
    let PlatformPolicy { tcb, refused_advisories, min_tcb_evaluation_data_number, platforms, quote_versions } =
        platform;
    for (index, AcceptedTcb { status, until }) in tcb.iter().enumerate() {
        let pointer = format!("/platform/tcb/{index}");
        match *until {
            Some(end) if end <= now => {
                let detail = format!("the grace for {status} ended at {end} s since 1970");
                findings.warn("tcb_grace_ended", &pointer, detail, "leave it out, or set another end");
            }
            Some(end) if end.saturating_sub(now) > LONG_GRACE => {
                let days = end.saturating_sub(now) / DAY;
                let detail = format!("the grace for {status} ends in {days} days, more than {}", LONG_GRACE / DAY);
                findings.warn(
                    "tcb_grace_long",
                    &pointer,
                    detail,
                    "set an end within weeks: known holes stay open until then",
                );
            }
            None if is_out_of_date(*status) => {
                let detail = format!("{status} is accepted for ever: microcode or TDX module with known holes");
                findings.warn("tcb_without_end", &pointer, detail, "set until, in seconds since 1970");
            }
            _ => {}
        }
        if tcb.iter().take(index).any(|earlier| earlier.status == *status) {
            let detail = format!("{status} stands more than once; the latest end counts");
            findings.warn("duplicate_entry", &pointer, detail, "leave one");
        }
    }
    if !tcb.iter().any(|accepted| accepted.status == TcbStatus::UpToDate && accepted.until.is_none_or(|end| end > now))
    {
        let detail = "a platform that is up to date is refused";
        findings.warn("tcb_up_to_date_refused", "/platform/tcb", detail, "add {\"status\": \"UpToDate\"}");
    }
    for (index, advisory) in refused_advisories.iter().enumerate() {
        if !is_advisory(advisory) {
            let detail = format!("{:?} is not written as Intel writes advisories: it never matches", clip(advisory));
            let fix = "write INTEL-SA- and five digits";
            findings.warn("advisory_format", &format!("/platform/refused_advisories/{index}"), detail, fix);
        }
    }
    repeated("/platform/refused_advisories", refused_advisories.iter().map(|name| name.to_ascii_uppercase()), findings);
    if *min_tcb_evaluation_data_number == 0 {
        let detail = "collateral's source can choose an older TCB evaluation that Intel still signs";
        let fix = "set the number of the evaluation that you rely on: `collateral status` shows it";
        findings.warn("tcb_evaluation_unbounded", "/platform/min_tcb_evaluation_data_number", detail, fix);
    }
    repeated("/platform/platforms", platforms.iter().flatten(), findings);
    let versions = quote_versions.iter().flatten().map(|version| match version {
        QuoteVersion::V4 => 4,
        QuoteVersion::V5 => 5,
    });
    repeated("/platform/quote_versions", versions, findings);
}

const fn is_out_of_date(status: TcbStatus) -> bool {
    matches!(status, TcbStatus::OutOfDate | TcbStatus::OutOfDateConfigurationNeeded)
}

/// As Intel writes them: `INTEL-SA-00837`. Policies are compared without regard to case.
fn is_advisory(text: &str) -> bool {
    let digits = text.get(..9).filter(|start| start.eq_ignore_ascii_case("INTEL-SA-")).and_then(|_| text.get(9..));
    digits.is_some_and(|digits| digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

fn clip(text: &str) -> String {
    text.chars().take(32).collect()
}

const DAY: u64 = 86_400;
/// A grace that lasts longer is worth a word.
const LONG_GRACE: u64 = 90 * DAY;
