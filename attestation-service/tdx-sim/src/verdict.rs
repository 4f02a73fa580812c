// SPDX-License-Identifier: Apache-2.0
//! For tests that hold two ways to verify a quote against each other.

use tdx_verify::{AcceptedTcb, PlatformPolicy, QuoteRefused, TcbStatus, VerifiedQuote};

/// A verdict in a form that two of them can be compared in: all that is verified, or each code with its field.
///
/// # Errors
/// The codes and fields of what is refused.
pub fn told(verdict: &Result<VerifiedQuote, QuoteRefused>) -> Result<String, Vec<(String, String)>> {
    match verdict {
        Ok(verified) => Ok(format!("{verified:?}")),
        Err(refused) => Err(refused.refusals().into_iter().map(|refusal| (refusal.code, refusal.field)).collect()),
    }
}

/// Any status that a platform can have: what is left are the refusals that no policy excuses.
#[must_use]
pub fn lenient() -> PlatformPolicy {
    let all = [
        TcbStatus::UpToDate,
        TcbStatus::SwHardeningNeeded,
        TcbStatus::ConfigurationNeeded,
        TcbStatus::ConfigurationAndSwHardeningNeeded,
        TcbStatus::OutOfDate,
        TcbStatus::OutOfDateConfigurationNeeded,
        TcbStatus::TdRelaunchAdvised,
        TcbStatus::TdRelaunchAdvisedConfigurationNeeded,
    ];
    let tcb = all.map(|status| AcceptedTcb { status, until: None }).to_vec();
    PlatformPolicy { tcb, ..PlatformPolicy::default() }
}
