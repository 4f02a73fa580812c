// SPDX-License-Identifier: Apache-2.0
//! A quote by itself.

use serde_json::json;
use tdx_verify::{Collateral, KnownPlatforms, PlatformPolicy, VerifiedQuote};
use types::Refusal;

use crate::{
    Anchors, QuoteRequest,
    answer::{Answer, Decided, refuse},
};

pub(crate) fn decide(request: &QuoteRequest, anchors: &Anchors, at: u64) -> Answer {
    let collateral = read_collateral(&request.collateral)?;
    let quote = verify(request.quote.as_slice(), &collateral, anchors, at, &request.policy)?;
    Ok(Decided::accepted(json!({
        "hardware": quote.hardware(),
        "measurements": "not_appraised",
        "tcb": quote.tcb(),
        "platform": quote.platform(),
        "fmspc": hex::encode(quote.fmspc()),
        "td_attributes": hex::encode(quote.td_attributes().bits().to_le_bytes()),
        "xfam": hex::encode(quote.xfam().bits().to_le_bytes()),
        "mr_seam": quote.mr_seam(),
        "registers": quote.registers(),
        "report_data": hex::encode(quote.report_data()),
        "collateral_expires": quote.collateral_expires(),
        "quote": quote.digest(),
    })))
}

pub(crate) fn read_collateral(files: &[String]) -> Result<Vec<Collateral>, Vec<Refusal>> {
    if files.len() > MAX_COLLATERAL {
        let rule = format!("at most {MAX_COLLATERAL} files, found {}", files.len());
        return Err(refuse("collateral_malformed", "collateral", rule, "give the collateral of one platform"));
    }
    let read = |file: &String| Collateral::from_json(file.as_bytes());
    let fix = "give collateral in dcap-qvl's form, unchanged";
    let all = files.iter().map(read).collect::<Result<_, _>>();
    all.map_err(|error| refuse("collateral_malformed", "collateral", error, fix))
}

/// Verifies all of a quote, by the collateral that is for its platform. Nothing is kept of it.
pub(crate) fn verify(
    quote: &[u8],
    collateral: &[Collateral],
    anchors: &Anchors,
    at: u64,
    policy: &PlatformPolicy,
) -> Result<VerifiedQuote, Vec<Refusal>> {
    let none_is_kept = KnownPlatforms::new(0);
    none_is_kept
        .examine(quote, collateral, &anchors.quotes, at)
        .and_then(|examined| examined.judge(policy))
        .map_err(|refused| refused.refusals())
}

/// Files of collateral in one request.
const MAX_COLLATERAL: usize = 16;
