// SPDX-License-Identifier: Apache-2.0
//! Verifies TDX quotes against collateral, trust anchors and policy.
//!
//! `dcap-qvl` verifies certificates, revocation, signatures and TCB levels. It is lenient where its callers
//! differ; what it does not check, and what no policy may allow, is checked here: exact length at every level,
//! attributes, XFAM, the SEAM module's signer, service TDs, and that the quote's own PCK chain is the one used.
//! Pure: bytes and the time are arguments.

mod anchors;
mod body;
mod chain;
mod collateral;
mod fault;
mod issued;
mod policy;
mod signature;
mod verified;

use dcap_qvl::QuoteClaims;
use tdx_spec::Quote;
use types::{Sha256Digest, Sha384Digest};

pub use anchors::{Hardware, TrustAnchors};
pub use body::{ATTRIBUTES_ALLOWED, XFAM_ALLOWED, XFAM_REQUIRED};
pub use collateral::{Collateral, CollateralError, MAX_COLLATERAL_LEN};
pub use fault::{ChainRule, QuoteFault, QuoteRefused, SignatureForm};
pub use issued::{CollateralFacts, CollateralFault, Span};
pub use policy::{AcceptedTcb, PlatformPolicy, Tcb, TcbStatus};
pub use verified::VerifiedQuote;

/// Verifies exactly the bytes of a quote at `now` (seconds since 1970).
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
    let refuse = |fault| QuoteRefused { faults: vec![fault] };
    let parsed = Quote::parse(quote).map_err(|e| refuse(e.into()))?;
    check_header(&parsed).map_err(refuse)?;
    let facts = signature::read(parsed.signature).map_err(|e| refuse(QuoteFault::SignatureForm(e)))?;
    let mut faults = Vec::new();
    if collateral.pck_chain.as_ref().is_some_and(|chain| !same_pem(chain.as_bytes(), facts.pck_chain)) {
        faults.push(QuoteFault::CollateralPckChain);
    }
    let claims = anchors
        .verifier()
        .allow_debug(true)
        .allow_service_td(true)
        .verify_with_policy(quote, collateral.inner.clone(), now, &JudgedHere)
        .map_err(|error| chain::fault(&error, quote, facts, collateral));
    let body_faults = body::check(&parsed.body);
    let judged = match claims {
        Ok(claims) => match judge(&claims, collateral, policy, now) {
            Ok(accepted) => Some((claims, accepted)),
            Err(mut found) => {
                faults.append(&mut found);
                None
            }
        },
        Err(Some(fault)) => {
            faults.push(fault);
            None
        }
        // The library refused a field that `body::check` refuses, too; if it did not, nothing may pass.
        Err(None) => {
            if body_faults.is_empty() {
                faults.push(unverified("a refusal of the TD's fields that is not known"));
            }
            None
        }
    };
    faults.extend(body_faults);
    match judged {
        Some((claims, (tcb, platform))) if faults.is_empty() => {
            Ok(accept(quote, &parsed, anchors, &claims, tcb, platform))
        }
        _ => Err(QuoteRefused { faults }),
    }
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

fn check_header(quote: &Quote<'_>) -> Result<(), QuoteFault> {
    if quote.header.qe_vendor_id != tdx_spec::quote::QE_VENDOR_INTEL {
        return Err(QuoteFault::QeVendor(quote.header.qe_vendor_id));
    }
    let key_type = u16::from_le_bytes(quote.header.attestation_key_type);
    if key_type != tdx_spec::quote::ATTESTATION_KEY_ECDSA_P256 {
        return Err(QuoteFault::AttestationKeyType(key_type));
    }
    Ok(())
}

/// Judges what the verified chain says about the platform.
fn judge(
    claims: &QuoteClaims,
    collateral: &Collateral,
    policy: &PlatformPolicy,
    now: u64,
) -> Result<(Tcb, Sha256Digest), Vec<QuoteFault>> {
    let mut faults = Vec::new();
    let pce_id = fault::hex(&claims.platform.pck.pce_id);
    if pce_id != collateral.pce_id {
        faults.push(QuoteFault::PceId { expected: collateral.pce_id.clone(), found: pce_id });
    }
    let Some(status) = TcbStatus::from_collateral(claims.tcb.status) else {
        faults.push(unverified("a revoked TCB"));
        return Err(faults);
    };
    let mut advisories = claims.tcb.advisory_ids.clone();
    advisories.sort_unstable();
    advisories.dedup();
    let tcb = Tcb {
        status,
        advisories,
        evaluation_data_number: claims.tcb.eval_data_number,
        date: claims.platform.tcb_date_tag,
    };
    let platform = Sha256Digest::of_parts(&[b"chrysalis/platform/v1", &claims.platform.pck.ppid]);
    faults.extend(policy.judge(&tcb, &platform, now));
    if faults.is_empty() { Ok((tcb, platform)) } else { Err(faults) }
}

fn accept(
    quote: &[u8],
    parsed: &Quote<'_>,
    anchors: &TrustAnchors,
    claims: &QuoteClaims,
    tcb: Tcb,
    platform: Sha256Digest,
) -> VerifiedQuote {
    let report = parsed.body.report();
    VerifiedQuote {
        registers: verified::registers(parsed),
        report_data: report.report_data,
        hardware: anchors.hardware(),
        version: parsed.header.quote_version().unwrap_or(tdx_spec::QuoteVersion::V4),
        td_attributes: report.td_attributes,
        xfam: report.xfam,
        mr_seam: Sha384Digest::from_bytes(report.mr_seam),
        tee_tcb_svn: report.tee_tcb_svn,
        tcb,
        platform,
        fmspc: claims.platform.pck.fmspc,
        collateral_expires: claims.earliest_expiration_date,
        digest: Sha256Digest::of(quote),
    }
}

/// Same PEM text, apart from white space and the NUL that Intel's tools append.
fn same_pem(a: &[u8], b: &[u8]) -> bool {
    let significant = |bytes: &[u8]| -> Vec<u8> {
        bytes.iter().copied().filter(|byte| !byte.is_ascii_whitespace() && *byte != 0).collect()
    };
    significant(a) == significant(b)
}

fn unverified(what: &str) -> QuoteFault {
    QuoteFault::Chain { rule: ChainRule::Unverified, detail: format!("the verifier reported {what}") }
}

/// Judgement of the claims happens in [`judge`], where each rule has its code.
struct JudgedHere;

impl dcap_qvl::Policy for JudgedHere {
    fn validate(&self, _: &QuoteClaims) -> Result<(), anyhow::Error> {
        Ok(())
    }
}

const PADDED_LEN: usize = 8000;
const PADDING_V4_IN_V5: usize = 70;
