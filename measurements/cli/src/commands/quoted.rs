// SPDX-License-Identifier: Apache-2.0
//! The registers of a quote that nobody verified.

use tdx_spec::Quote;
use types::{Refusal, Registers, Sha384Digest};

use crate::output::Failure;

/// Reads a quote's registers. The quote device pads with zeros; anything else behind the quote is refused.
pub(crate) fn registers(bytes: &[u8]) -> Result<Registers, Failure> {
    let malformed = |detail| Refusal::new("quote_malformed", "quote", detail, "give the quote as the guest got it");
    let (quote, rest) = Quote::parse_prefix(bytes).map_err(|error| malformed(error.to_string()))?;
    if rest.iter().any(|byte| *byte != 0) {
        return Err(malformed(format!("{} bytes follow the quote", rest.len())).into());
    }
    let report = quote.body.report();
    let digest = Sha384Digest::from_bytes;
    Ok(Registers {
        mr_td: digest(report.mr_td),
        rtmr_0: digest(report.rtmr_0),
        rtmr_1: digest(report.rtmr_1),
        rtmr_2: digest(report.rtmr_2),
        rtmr_3: digest(report.rtmr_3),
        mr_config_id: digest(report.mr_config_id),
        mr_owner: digest(report.mr_owner),
        mr_owner_config: digest(report.mr_owner_config),
    })
}
