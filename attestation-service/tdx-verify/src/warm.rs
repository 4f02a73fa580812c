// SPDX-License-Identifier: Apache-2.0
//! The warm path: judges a quote under a PCK chain and collateral that `dcap-qvl` accepted together before.
//!
//! What depends on chain and collateral alone is not looked at again: issuers, revocation, FMSPC, dates (the caller
//! compares their common validity with the time). Everything else is checked here, in `dcap-qvl`'s order, by the
//! rules of Intel's quote verification library ("Intel TDX DCAP Quoting Library API" and `QuoteVerifier.cpp`,
//! `TDRelaunch`, `convergeTcbStatuses` there). Tests and fuzzing demand the same verdict from both paths.

use dcap_qvl::TcbStatus;
use ecdsa_verify::Scheme;
use tdx_spec::{Quote, QuoteBody, TdAttributes, TdReport10};
use types::Sha256Digest;

use crate::{
    examine::Claims,
    fault::{ChainRule, QuoteFault},
    known::Platform,
    policy::{self, Tcb},
    signature::{QeReport, SignatureSection},
    tables::{Qe, Standing, Tables},
};

/// One quote under a known platform.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Warm<'a> {
    pub(crate) quote: &'a Quote<'a>,
    pub(crate) section: &'a SignatureSection<'a>,
    pub(crate) platform: &'a Platform,
    pub(crate) tables: &'a Tables,
    /// The quoting enclave's report and its signature verified before under this platform's PCK certificate, by
    /// [`report_digest`].
    pub(crate) seen_report: Option<Sha256Digest>,
}

/// Name of a quoting enclave's report with its signature.
pub(crate) fn report_digest(section: &SignatureSection<'_>) -> Sha256Digest {
    Sha256Digest::of_parts(&[section.qe_report, section.qe_report_signature])
}

impl Warm<'_> {
    /// What the quote says of its platform. As with `dcap-qvl`, the first rule that is broken ends it; `None` stands
    /// for one of the TD's own fields, which [`crate::body`] names.
    pub(crate) fn claims(&self) -> Result<Claims, Option<QuoteFault>> {
        let Self { quote, section, platform, tables, .. } = *self;
        self.qe_report()?;
        let qe = quoting_enclave(&section.qe, &tables.qe)?;
        if !signed_by(&point(section.attestation_key), quote.signed, section.signature) {
            return Err(broken(ChainRule::QuoteSignature, "the attestation key did not sign these bytes"));
        }
        let launched = quote.body.report();
        let mut standing = self.tcb_level(&launched.tee_tcb_svn)?;
        module_identity(launched, tables)?;
        let current = match quote.body.report_15() {
            None => None,
            Some(report) => Some(self.tcb_level(&report.tee_tcb_svn_2)?.status),
        };
        standing.status = converged(standing.status, qe.status);
        standing.advisories.extend(qe.advisories.iter().cloned());
        let current = current.map(|status| converged(status, qe.status));
        if standing.status == TcbStatus::Revoked || current == Some(TcbStatus::Revoked) {
            let rule = if qe.status == TcbStatus::Revoked { ChainRule::QeRevoked } else { ChainRule::TcbRevoked };
            return Err(broken(rule, "the TCB status is Revoked"));
        }
        if let Some(current) = current {
            standing.status = relaunched(standing.status, current);
        }
        if library_gives_no_claims(&quote.body) {
            return Err(None);
        }
        let unknown = || broken(ChainRule::Unverified, "the TCB status has no name here");
        let status = policy::TcbStatus::from_collateral(standing.status).ok_or_else(unknown)?;
        standing.advisories.sort_unstable();
        standing.advisories.dedup();
        Ok(Claims {
            tcb: Tcb {
                status,
                advisories: standing.advisories,
                evaluation_data_number: platform.evaluation_data_number,
                date: standing.date,
            },
            platform: platform.name,
            fmspc: platform.fmspc,
            expires: platform.until,
        })
    }

    /// The PCK signed the quoting enclave's report, and the report binds the attestation key.
    fn qe_report(&self) -> Result<(), Option<QuoteFault>> {
        let Self { section, platform, .. } = *self;
        let seen = self.seen_report == Some(report_digest(section));
        if !seen && !signed_by(&platform.pck_key, section.qe_report, section.qe_report_signature) {
            let detail = "the PCK certificate's key did not sign the quoting enclave's report";
            return Err(broken(ChainRule::QeReportSignature, detail));
        }
        if section.qe_auth_data.len() != QE_AUTH_DATA_LEN {
            let detail = format!("the quoting enclave's authentication data must have {QE_AUTH_DATA_LEN} bytes");
            return Err(broken(ChainRule::QeReportData, detail));
        }
        let bound = Sha256Digest::of_parts(&[section.attestation_key, section.qe_auth_data]);
        if *bound.as_bytes() != section.qe.bound {
            return Err(broken(ChainRule::QeReportData, "the quoting enclave's report binds another attestation key"));
        }
        Ok(())
    }

    /// The level that the platform meets with these security versions of its TDX module, together with the module's
    /// own level.
    fn tcb_level(&self, tee_tcb_svn: &[u8; 16]) -> Result<Standing, Option<QuoteFault>> {
        let Self { platform, tables, .. } = *self;
        let [module_isv_svn, module_version, ..] = *tee_tcb_svn;
        // A module with a version of its own is judged by its identity, not by the level's first two components.
        let skipped = if module_version > 0 { 2 } else { 0 };
        let met = tables.levels.iter().find(|level| {
            reaches(&platform.cpu_svn, &level.cpu_svn, 0)
                && platform.pce_svn >= level.pce_svn
                && reaches(tee_tcb_svn, &level.tee_tcb_svn, skipped)
        });
        let Some(met) = met else {
            return Err(broken(ChainRule::TcbLevelNone, "the platform meets no TCB level"));
        };
        let mut standing = met.standing.clone();
        if module_version == 0 {
            return Ok(standing);
        }
        let unknown = || broken(ChainRule::TdxModule, format!("no TDX module of version {module_version} is known"));
        let module = tables.module(module_version).ok_or_else(unknown)?;
        let level = module.levels.iter().find(|(isv_svn, _)| module_isv_svn >= *isv_svn).map(|(_, level)| level);
        let below = || broken(ChainRule::TdxModule, format!("the TDX module's ISVSVN {module_isv_svn} meets no level"));
        let level = level.ok_or_else(below)?;
        standing.status = converged(standing.status, level.status);
        standing.date = standing.date.min(level.date);
        standing.advisories.extend(level.advisories.iter().cloned());
        Ok(standing)
    }
}

/// The QE identity's rules, and the level that the quoting enclave meets.
fn quoting_enclave<'a>(report: &QeReport, identity: &'a Qe) -> Result<&'a Standing, Option<QuoteFault>> {
    let other = |what: &str| broken(ChainRule::QeIdentity, format!("the quoting enclave's {what} is not Intel's"));
    if report.mr_signer != identity.mr_signer {
        return Err(other("MRSIGNER"));
    }
    let [flags, ..] = report.attributes;
    if flags & SGX_DEBUG != 0 {
        return Err(broken(ChainRule::QeDebug, "the quoting enclave runs in debug mode"));
    }
    if report.isv_prod_id != identity.isv_prod_id {
        return Err(other("ISVPRODID"));
    }
    if (report.misc_select ^ identity.misc_select) & identity.misc_select_mask != 0 {
        return Err(other("MISCSELECT"));
    }
    if !equal_under(&report.attributes, &identity.attributes, &identity.attributes_mask) {
        return Err(other("ATTRIBUTES"));
    }
    let met = identity.levels.iter().find(|(isv_svn, _)| report.isv_svn >= *isv_svn);
    met.map(|(_, standing)| standing).ok_or_else(|| {
        broken(ChainRule::QeIdentity, format!("the quoting enclave's ISVSVN {} meets no level", report.isv_svn))
    })
}

/// Signer and attributes of the TDX module.
fn module_identity(report: &TdReport10, tables: &Tables) -> Result<(), Option<QuoteFault>> {
    let [_, version, ..] = report.tee_tcb_svn;
    let module = if version == 0 { Some(&tables.base_module) } else { tables.module(version) };
    let unknown = || broken(ChainRule::TdxModule, format!("no TDX module of version {version} is known"));
    let module = module.ok_or_else(unknown)?;
    if report.mr_signer_seam != module.signer {
        return Err(broken(ChainRule::TdxModule, "another signer than Intel's signed the TDX module"));
    }
    // Bits outside of the mask must be clear.
    let outside = report.seam_attributes.iter().zip(&module.mask).any(|(found, mask)| found & !mask != 0);
    if outside || !equal_under(&report.seam_attributes, &module.attributes, &module.mask) {
        return Err(broken(ChainRule::TdxModule, "the TDX module's attributes are not those of its identity"));
    }
    Ok(())
}

/// Intel's `convergeTcbStatuses`: a component that is out of date or revoked drags the platform down.
const fn converged(platform: TcbStatus, component: TcbStatus) -> TcbStatus {
    use TcbStatus as S;
    match (component, platform) {
        (S::Revoked, _) => S::Revoked,
        (S::OutOfDate, S::UpToDate | S::SWHardeningNeeded) => S::OutOfDate,
        (S::OutOfDate, S::ConfigurationNeeded | S::ConfigurationAndSWHardeningNeeded) => {
            S::OutOfDateConfigurationNeeded
        }
        _ => platform,
    }
}

/// Intel's `checkForRelaunch`: a TD that was launched before its module was updated must be started again.
const fn relaunched(launched: TcbStatus, current: TcbStatus) -> TcbStatus {
    use TcbStatus as S;
    match (launched, current) {
        (S::OutOfDate, S::UpToDate | S::SWHardeningNeeded) => S::TDRelaunchAdvised,
        (S::OutOfDate, S::ConfigurationNeeded | S::ConfigurationAndSWHardeningNeeded)
        | (
            S::OutOfDateConfigurationNeeded,
            S::UpToDate | S::SWHardeningNeeded | S::ConfigurationNeeded | S::ConfigurationAndSWHardeningNeeded,
        ) => S::TDRelaunchAdvisedConfigurationNeeded,
        _ => launched,
    }
}

/// Fields for which `dcap-qvl` refuses at its end, so that there is no TCB to judge. [`crate::body`] refuses each.
fn library_gives_no_claims(body: &QuoteBody) -> bool {
    let attributes = body.report().td_attributes;
    attributes.bits() & LIBRARY_RESERVED != 0
        || attributes.contains(TdAttributes::MIGRATABLE)
        || !attributes.contains(TdAttributes::SEPT_VE_DISABLE)
        || (matches!(body, QuoteBody::Td10(_)) && attributes.contains(SERVTD_EXT))
}

fn signed_by(public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    Scheme::P256Fixed.verifies(public_key, message, signature)
}

/// x ‖ y as an uncompressed point.
fn point(coordinates: &[u8]) -> Vec<u8> {
    [&[4], coordinates].concat()
}

fn reaches(found: &[u8; 16], demanded: &[u8; 16], skipped: usize) -> bool {
    found.iter().zip(demanded).skip(skipped).all(|(found, demanded)| found >= demanded)
}

fn equal_under(found: &[u8], expected: &[u8], mask: &[u8]) -> bool {
    found.iter().zip(expected).zip(mask).all(|((found, expected), mask)| (found ^ expected) & mask == 0)
}

#[allow(clippy::unnecessary_wraps, reason = "every caller returns it as the error")]
fn broken(rule: ChainRule, detail: impl Into<String>) -> Option<QuoteFault> {
    Some(QuoteFault::Chain { rule, detail: detail.into() })
}

/// Intel's quoting enclaves use this length, and `dcap-qvl` takes no other.
const QE_AUTH_DATA_LEN: usize = 32;
/// Bit DEBUG of an enclave's attributes.
const SGX_DEBUG: u8 = 0x02;
/// Bit SERVTD_EXT of the TD attributes.
const SERVTD_EXT: u64 = 1 << 17;
/// "Intel TDX Module ABI specification", table 3.23: bits 3:1, 15:7, 26:23 and 61:32.
const LIBRARY_RESERVED: u64 = 0x3fff_ffff_0780_ff8e;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_bits_are_those_of_the_table() {
        let listed = (1..=3).chain(7..=15).chain(23..=26).chain(32..=61).fold(0_u64, |mask, bit| mask | 1 << bit);
        assert_eq!(LIBRARY_RESERVED, listed);
    }

    /// Every pair of statuses, against `dcap-qvl`'s own words for two of the three rules' results.
    #[test]
    fn a_component_only_ever_lowers_a_status() {
        use TcbStatus as S;
        let all = [
            S::UpToDate,
            S::SWHardeningNeeded,
            S::ConfigurationNeeded,
            S::ConfigurationAndSWHardeningNeeded,
            S::OutOfDate,
            S::OutOfDateConfigurationNeeded,
            S::Revoked,
        ];
        for platform in all {
            for component in all {
                let theirs = dcap_qvl::TcbStatusWithAdvisory::new(platform, Vec::new())
                    .merge(&dcap_qvl::TcbStatusWithAdvisory::new(component, Vec::new()));
                assert_eq!(converged(platform, component), theirs.status, "{platform} {component}");
            }
        }
        assert_eq!(relaunched(S::OutOfDate, S::UpToDate), S::TDRelaunchAdvised);
        assert_eq!(relaunched(S::OutOfDate, S::ConfigurationNeeded), S::TDRelaunchAdvisedConfigurationNeeded);
        assert_eq!(relaunched(S::OutOfDateConfigurationNeeded, S::UpToDate), S::TDRelaunchAdvisedConfigurationNeeded);
        for current in [S::OutOfDate, S::OutOfDateConfigurationNeeded] {
            assert_eq!(relaunched(S::OutOfDate, current), S::OutOfDate);
        }
        assert_eq!(relaunched(S::UpToDate, S::OutOfDate), S::UpToDate);
    }
}
