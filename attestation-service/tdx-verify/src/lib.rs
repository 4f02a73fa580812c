// SPDX-License-Identifier: Apache-2.0
//! Verifies TDX quotes against collateral, trust anchors and policy.
//!
//! `dcap-qvl` verifies certificates, revocation, signatures and TCB levels. It is lenient where its callers
//! differ; what it does not check, and what no policy may allow, is checked here: exact length at every level,
//! attributes, XFAM, the SEAM module's signer, service TDs, and that the quote's own PCK chain is the one used.
//! Where it accepted a platform's chain with collateral before, later quotes take a shorter path of this crate's own
//! ([`KnownPlatforms`]).
//! Pure: bytes and the time are arguments.

mod anchors;
mod behind;
mod body;
mod chain;
mod collateral;
mod examine;
mod fault;
mod issued;
mod known;
mod policy;
mod signature;
mod tables;
mod verified;
mod warm;

use tdx_spec::Quote;

pub use anchors::{Hardware, TrustAnchors};
pub use behind::{Behind, Component};
pub use body::{ATTRIBUTES_ALLOWED, XFAM_ALLOWED, XFAM_REQUIRED};
pub use collateral::{Collateral, CollateralError, MAX_COLLATERAL_LEN};
pub use examine::Examined;
pub use fault::{ChainRule, QuoteFault, QuoteRefused, SignatureForm};
pub use issued::{CollateralFacts, CollateralFault, Span};
pub use known::{KnownPlatforms, Uses};
pub use policy::{AcceptedTcb, PlatformPolicy, Tcb, TcbStatus};
pub use verified::VerifiedQuote;

/// Verifies exactly the bytes of a quote at `now` (seconds since 1970), all of it by `dcap-qvl`. Whoever verifies many
/// quotes keeps [`KnownPlatforms`].
///
/// Establishes that a genuine platform under `anchors`, acceptable to `policy`, made this quote about a TD that
/// the host can neither debug nor migrate. Registers and REPORTDATA are still to be appraised.
///
/// # Errors
/// [`QuoteRefused`] with all independent reasons: form (alone), then chain and signatures, TCB and platform,
/// the TD's own fields.
pub fn verify(
    quote: &[u8],
    collateral: &Collateral,
    anchors: &TrustAnchors,
    now: u64,
    policy: &PlatformPolicy,
) -> Result<VerifiedQuote, QuoteRefused> {
    let (examined, _) = examine::Formed::read(quote)?.examine(collateral, anchors, now);
    examined.judge(policy)
}

/// Why the kind of platform (FMSPC) can't be read from `quote`, so that there is no collateral to choose: the form of
/// the quote, or of its PCK certificate. `None` where it can be read; that alone says nothing for the quote.
#[must_use]
pub fn unreadable(quote: &[u8]) -> Option<QuoteRefused> {
    let nameless = || examine::pck_malformed("the quote's PCK certificate names no platform");
    match examine::Formed::read(quote) {
        Err(refused) => Some(refused),
        Ok(_) => collateral::fmspc(quote).is_none().then(|| QuoteRefused { faults: vec![nameless()] }),
    }
}

/// The kind of platform (FMSPC) that `quote` claims, and whether the processor's CA, not the platform's, is said to have
/// issued its PCK certificate. **Verifies nothing**: it tells which collateral to ask for.
#[must_use]
pub fn claimed_platform(quote: &[u8]) -> Option<([u8; 6], bool)> {
    let parsed = dcap_qvl::quote::Quote::parse(quote).ok()?;
    let fmspc = dcap_qvl::intel::quote_fmspc(&parsed).ok()?;
    let processor = matches!(dcap_qvl::intel::quote_ca(&parsed), Ok(dcap_qvl::config::PckCa::Processor));
    Some((fmspc, processor))
}

/// Cuts the zeros with which two known sources pad quotes: cloud guest agents to 8,000 bytes, and the quote
/// generation service by 70 bytes where a version 4 quote stands in a buffer for version 5. Anything else
/// comes back as it is, for [`verify`] to refuse. Documents that carry a quote carry it without padding.
#[must_use]
pub fn strip_padding(quote: &[u8]) -> &[u8] {
    let Ok((_, rest)) = Quote::parse_prefix(quote) else { return quote };
    let known = quote.len() == PADDED_LEN || rest.len() == PADDING_V4_IN_V5;
    if known && rest.iter().all(|byte| *byte == 0) {
        quote.split_at_checked(quote.len().saturating_sub(rest.len())).map_or(quote, |(exact, _)| exact)
    } else {
        quote
    }
}

const PADDED_LEN: usize = 8000;
const PADDING_V4_IN_V5: usize = 70;
