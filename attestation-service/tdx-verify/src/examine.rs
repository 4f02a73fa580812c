// SPDX-License-Identifier: Apache-2.0
//! What holds of a quote whatever the policy says: form, signatures, TCB. A policy judges it afterwards.

use dcap_qvl::QuoteClaims;
use tdx_spec::{Quote, QuoteVersion};
use types::{Sha256Digest, Sha384Digest};

use crate::{
    Collateral, Hardware, PlatformPolicy, QuoteFault, QuoteRefused, TrustAnchors, VerifiedQuote, body, chain,
    fault::{self, ChainRule},
    policy::{Tcb, TcbStatus},
    signature::{self, SignatureSection},
    verified,
};

/// A quote that was examined: by one or several policies it may now be judged. By itself it says nothing; faults that
/// no policy excuses are in it and come out of [`Examined::judge`].
#[derive(Debug, Clone)]
#[must_use]
pub struct Examined<'a> {
    bytes: &'a [u8],
    quote: Quote<'a>,
    hardware: Hardware,
    now: u64,
    /// Faults of chain, signatures and TCB, in order.
    faults: Vec<QuoteFault>,
    body_faults: Vec<QuoteFault>,
    /// Absent when a fault kept the verifier from them.
    claims: Option<Claims>,
}

/// What a quote's verified chain says of its platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) tcb: Tcb,
    pub(crate) platform: Sha256Digest,
    pub(crate) fmspc: [u8; 6],
    /// First end of anything that the chain rests on.
    pub(crate) expires: u64,
}

/// A quote whose form is right.
#[derive(Debug)]
pub(crate) struct Formed<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) quote: Quote<'a>,
    pub(crate) section: SignatureSection<'a>,
}

impl<'a> Formed<'a> {
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, QuoteRefused> {
        let refuse = |fault| QuoteRefused { faults: vec![fault] };
        let quote = Quote::parse(bytes).map_err(|e| refuse(e.into()))?;
        check_header(&quote).map_err(refuse)?;
        let section = signature::read(quote.signature).map_err(|e| refuse(QuoteFault::SignatureForm(e)))?;
        Ok(Self { bytes, quote, section })
    }

    /// The cold path: `dcap-qvl` verifies everything. Its claims come along where it accepted.
    pub(crate) fn examine(
        self,
        collateral: &Collateral,
        anchors: &TrustAnchors,
        now: u64,
    ) -> (Examined<'a>, Option<QuoteClaims>) {
        let mut faults = Vec::new();
        let own = self.section.pck_chain;
        if collateral.pck_chain.as_ref().is_some_and(|chain| !same_pem(chain.as_bytes(), own)) {
            faults.push(QuoteFault::CollateralPckChain);
        }
        let theirs = anchors
            .verifier()
            .allow_debug(true)
            .allow_service_td(true)
            .verify_with_policy(self.bytes, collateral.inner.clone(), now, &JudgedHere)
            .map_err(|error| chain::fault(&error, self.bytes, &self.section, collateral));
        let (theirs, result) = match theirs {
            Ok(theirs) => {
                let claims = Claims::of(&theirs, collateral, &mut faults);
                (Some(theirs), claims.ok_or(None))
            }
            Err(fault) => (None, Err(fault)),
        };
        (self.finish(result, faults, anchors, now), theirs)
    }

    /// Puts the parts together. `Err(None)` stands for a refusal of the TD's own fields.
    pub(crate) fn finish(
        self,
        result: Result<Claims, Option<QuoteFault>>,
        mut faults: Vec<QuoteFault>,
        anchors: &TrustAnchors,
        now: u64,
    ) -> Examined<'a> {
        let body_faults = body::check(&self.quote.body);
        let claims = match result {
            Ok(claims) => Some(claims),
            Err(fault) => {
                faults.extend(fault);
                // Where the body is refused, `body::check` says why; if it does not, nothing may pass.
                if faults.is_empty() && body_faults.is_empty() {
                    faults.push(unverified("a refusal of the TD's fields that is not known"));
                }
                None
            }
        };
        let Self { bytes, quote, .. } = self;
        Examined { bytes, quote, hardware: anchors.hardware(), now, faults, body_faults, claims }
    }
}

impl Examined<'_> {
    /// Judges the quote by a policy.
    ///
    /// # Errors
    /// [`QuoteRefused`] with all independent reasons: chain and signatures, TCB and platform, the TD's own fields.
    pub fn judge(&self, policy: &PlatformPolicy) -> Result<VerifiedQuote, QuoteRefused> {
        let version = self.quote.header.quote_version().unwrap_or(QuoteVersion::V4);
        let mut faults = self.faults.clone();
        if let Some(claims) = &self.claims {
            faults.extend(policy.judge(version, &claims.tcb, &claims.platform, self.now));
        }
        faults.extend(self.body_faults.iter().cloned());
        match &self.claims {
            Some(claims) if faults.is_empty() => Ok(self.accept(version, claims)),
            _ => Err(QuoteRefused { faults }),
        }
    }

    /// Whether nothing of chain, signatures and collateral was refused.
    pub(crate) fn chain_accepted(&self) -> bool {
        self.faults.is_empty() && self.claims.is_some()
    }

    fn accept(&self, version: QuoteVersion, claims: &Claims) -> VerifiedQuote {
        let report = self.quote.body.report();
        VerifiedQuote {
            registers: verified::registers(&self.quote),
            report_data: report.report_data,
            hardware: self.hardware,
            version,
            td_attributes: report.td_attributes,
            xfam: report.xfam,
            mr_seam: Sha384Digest::from_bytes(report.mr_seam),
            tee_tcb_svn: report.tee_tcb_svn,
            tcb: claims.tcb.clone(),
            platform: claims.platform,
            fmspc: claims.fmspc,
            collateral_expires: claims.expires,
            digest: Sha256Digest::of(self.bytes),
        }
    }
}

impl Claims {
    fn of(theirs: &QuoteClaims, collateral: &Collateral, faults: &mut Vec<QuoteFault>) -> Option<Self> {
        let pck = &theirs.platform.pck;
        let pce_id = fault::hex(&pck.pce_id);
        if pce_id != collateral.pce_id {
            faults.push(QuoteFault::PceId { expected: collateral.pce_id.clone(), found: pce_id });
        }
        let Some(status) = TcbStatus::from_collateral(theirs.tcb.status) else {
            faults.push(unverified("a revoked TCB"));
            return None;
        };
        let mut advisories = theirs.tcb.advisory_ids.clone();
        advisories.sort_unstable();
        advisories.dedup();
        Some(Self {
            tcb: Tcb {
                status,
                advisories,
                evaluation_data_number: theirs.tcb.eval_data_number,
                date: theirs.platform.tcb_date_tag,
            },
            platform: platform_name(&pck.ppid),
            fmspc: pck.fmspc,
            expires: theirs.earliest_expiration_date,
        })
    }
}

/// Name of the platform with this PPID.
pub(crate) fn platform_name(ppid: &[u8]) -> Sha256Digest {
    Sha256Digest::of_parts(&[b"chrysalis/platform/v1", ppid])
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

/// Same PEM text, apart from white space and the NUL that Intel's tools append.
fn same_pem(a: &[u8], b: &[u8]) -> bool {
    let significant = |bytes: &[u8]| -> Vec<u8> {
        bytes.iter().copied().filter(|byte| !byte.is_ascii_whitespace() && *byte != 0).collect()
    };
    significant(a) == significant(b)
}

pub(crate) fn unverified(what: &str) -> QuoteFault {
    QuoteFault::Chain { rule: ChainRule::Unverified, detail: format!("the verifier reported {what}") }
}

/// What [`dcap_qvl`] does not get as far as to say.
pub(crate) fn pck_malformed(what: &str) -> QuoteFault {
    QuoteFault::Chain { rule: ChainRule::PckMalformed, detail: what.to_owned() }
}

/// Judgement happens in [`Examined::judge`], where each rule has its code.
struct JudgedHere;

impl dcap_qvl::Policy for JudgedHere {
    fn validate(&self, _: &QuoteClaims) -> Result<(), anyhow::Error> {
        Ok(())
    }
}
