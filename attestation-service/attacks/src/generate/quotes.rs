// SPDX-License-Identifier: Apache-2.0
//! Quotes and collateral of a simulated platform, good and bad in one way each.

use std::path::Path;

use anyhow::{Context as _, Result};
use tdx_sim::{Fault, QuoteVersion, SimulatedPlatform, TdReport};

use super::{FROM, Made, UNTIL};
use crate::case::Run;

/// Writes the cases under `out`; gives their number.
///
/// # Errors
/// A file can't be written.
pub fn quotes(out: &Path) -> Result<usize> {
    let world = World::new()?;
    let common = out.join("common");
    std::fs::create_dir_all(&common).with_context(|| common.display().to_string())?;
    std::fs::write(common.join("root.der"), world.platform.root_der())?;
    std::fs::write(common.join("collateral.json"), world.collateral(None)?)?;
    std::fs::write(common.join("quote.bin"), world.quote(V4, None)?)?;
    std::fs::write(common.join("quote-5.bin"), world.quote(V5, None)?)?;
    let mut cases = world.accepted()?;
    cases.extend(world.guests()?);
    cases.extend(world.platforms()?);
    cases.extend(world.bytes()?);
    cases.extend(world.policies()?);
    for case in &cases {
        case.write(out)?;
    }
    Ok(cases.len())
}

pub(super) struct World {
    pub(super) platform: SimulatedPlatform,
    other: SimulatedPlatform,
}

pub(super) const V4: QuoteVersion = QuoteVersion::V4;
pub(super) const V5: QuoteVersion = QuoteVersion::V5;

/// What a key release says of a genuine quote that was made for no connection at all, and of a guest without
/// configuration, events and time.
const NOT_BOUND: [(&str, &str); 3] = [
    ("report_data_mismatch", "report_data"),
    ("config_malformed", "guest_config"),
    ("config_digest_mismatch", "mr_config_id"),
];

impl World {
    fn new() -> Result<Self> {
        let platform = || SimulatedPlatform::generate_for(FROM - 3600, UNTIL);
        Ok(Self { platform: platform()?, other: platform()? })
    }

    pub(super) fn collateral(&self, fault: Option<Fault>) -> Result<Vec<u8>> {
        self.numbered(17, fault)
    }

    pub(super) fn numbered(&self, number: u32, fault: Option<Fault>) -> Result<Vec<u8>> {
        Ok(self.platform.collateral_lasting(FROM, UNTIL - FROM, number, fault)?.to_json().into_bytes())
    }

    pub(super) fn quote(&self, version: QuoteVersion, fault: Option<Fault>) -> Result<Vec<u8>> {
        Ok(self.platform.quote(&TdReport::example(), version, fault)?)
    }

    /// A case with the good root and everything else its own.
    pub(super) fn case(name: &str, title: &str, origin: &str, expected: &[(&str, &str)]) -> Result<Made> {
        Ok(Made::new(Run::Quote, name, title, origin, expected)?.common("root", "root.der"))
    }

    /// A bad quote, good collateral.
    fn bad_quote(
        &self,
        name: &str,
        title: &str,
        version: QuoteVersion,
        fault: Fault,
        e: &[(&str, &str)],
    ) -> Result<Made> {
        let case = Self::case(name, title, &origin(fault, version), e)?.common("collateral", "collateral.json");
        Ok(case.own("quote", "quote.bin", self.quote(version, Some(fault))?))
    }

    /// A good quote, bad collateral.
    pub(super) fn bad_collateral(
        &self,
        name: &str,
        title: &str,
        fault: Fault,
        expected: &[(&str, &str)],
    ) -> Result<Made> {
        let case = Self::case(name, title, &origin(fault, V4), expected)?.common("quote", "quote.bin");
        Ok(case.own("collateral", "collateral.json", self.collateral(Some(fault))?))
    }

    fn accepted(&self) -> Result<Vec<Made>> {
        let case = |name: &str, title: &str| -> Result<Made> {
            Ok(Self::case(name, title, "simulated: tdx-sim, no fault", &[])?.wire(&NOT_BOUND))
        };
        let advisory = self.collateral(Some(Fault::AdvisoryUpToDate))?;
        let old = self.collateral(Some(Fault::OutOfDateTcb))?;
        Ok(vec![
            case("00-quote-4", "a quote of version 4 with good collateral")?
                .common("quote", "quote.bin")
                .common("collateral", "collateral.json"),
            case("00-quote-5", "a quote of version 5 with good collateral")?
                .common("quote", "quote-5.bin")
                .common("collateral", "collateral.json"),
            case("00-evaluation-number", "collateral of exactly the number that the policy asks for")?
                .common("quote", "quote.bin")
                .common("collateral", "collateral.json")
                .own("policy", "policy.json", policy(r#""min_tcb_evaluation_data_number":17"#)),
            case("00-advisory-accepted", "an advisory on an up-to-date level that the policy does not refuse")?
                .common("quote", "quote.bin")
                .own("collateral", "collateral.json", advisory)
                .own("policy", "policy.json", policy(r#""refused_advisories":["SIMULATED-SA-00002"]"#)),
            case("00-inside-grace", "an OutOfDate platform, inside the policy's grace")?
                .common("quote", "quote.bin")
                .own("collateral", "collateral.json", old)
                .own("policy", "policy.json", grace(UNTIL)),
        ])
    }

    /// Attacks 1 to 5: fields of the TD and of the TDX module.
    fn guests(&self) -> Result<Vec<Made>> {
        let debug = ("tdx_debug_set", "td_attributes.debug");
        let reserved = ("tdx_attributes_reserved", "td_attributes");
        let named = ("tdx_attributes", "td_attributes");
        let sept = ("tdx_sept_ve_disable_off", "td_attributes.sept_ve_disable");
        let xfam = ("tdx_xfam", "xfam");
        let module = ("tdx_module", "quote.mr_seam");
        let attributes = |name: &str, title: &str, bits: u64, expected: &[(&str, &str)]| -> Result<Made> {
            let origin = format!("simulated: tdx-sim, TD attributes {bits:#018x}");
            let report = TdReport { attributes: bits.to_le_bytes(), ..TdReport::example() };
            let case = Self::case(name, title, &origin, expected)?.common("collateral", "collateral.json");
            Ok(case.own("quote", "quote.bin", self.platform.quote(&report, V4, None)?))
        };
        Ok(vec![
            self.bad_quote("01-debug", "a TD that the host may debug", V4, Fault::DebugAttribute, &[debug])?,
            self.bad_quote("01-debug-5", "the same, in version 5", V5, Fault::DebugAttribute, &[debug])?,
            attributes("01-debug-alone", "DEBUG is the only attribute", 1, &[debug, sept])?,
            self.bad_quote("02-reserved-bit-40", "a reserved attribute", V4, Fault::ReservedAttribute, &[reserved])?,
            self.bad_quote(
                "02-reserved-bit-40-5",
                "the same, in version 5",
                V5,
                Fault::ReservedAttribute,
                &[reserved],
            )?,
            attributes("02-reserved-bit-1", "a reserved attribute beside DEBUG", 1 << 28 | 1 << 1, &[reserved])?,
            attributes("02-perfmon", "the host's performance counters see the TD", 1 << 28 | 1 << 63, &[named])?,
            self.bad_quote("02-migratable", "a TD that can be migrated", V4, Fault::MigratableAttribute, &[named])?,
            self.bad_quote("03-sept-ve-enabled", "SEPT_VE_DISABLE is off", V4, Fault::SeptVeEnabled, &[sept])?,
            self.bad_quote("03-sept-ve-enabled-5", "the same, in version 5", V5, Fault::SeptVeEnabled, &[sept])?,
            self.bad_quote("03-unexpected-xfam", "processor trace in XFAM", V4, Fault::UnexpectedXfam, &[xfam])?,
            self.bad_quote("03-missing-xfam", "XFAM without SSE", V5, Fault::MissingXfam, &[xfam])?,
            self.bad_quote(
                "04-other-module-signer",
                "a TDX module that another than Intel signed",
                V4,
                Fault::OtherModuleSigner,
                &[module, ("tdx_mr_signer_seam", "mr_signer_seam")],
            )?,
            self.bad_quote(
                "04-seam-attributes",
                "a TDX module with attributes, as a debug module has",
                V4,
                Fault::SeamAttributes,
                &[module, ("tdx_seam_attributes", "seam_attributes")],
            )?,
            self.bad_quote(
                "05-service-td",
                "a service TD is bound to the guest",
                V5,
                Fault::ServiceTd,
                &[("tdx_mr_service_td", "mr_service_td")],
            )?,
        ])
    }

    /// Attacks 6 to 11, 14, 16: quoting enclave, certificates, collateral.
    fn platforms(&self) -> Result<Vec<Made>> {
        let revoked = ("pck_revoked", "quote.pck_certificate");
        let root = ("root_untrusted", "certificate_chain");
        let identity = ("qe_identity", "quote.qe_report");
        let malformed = ("collateral_malformed", "collateral");
        let none = ("tcb_level_none", "collateral.tcb_info.tcb_levels");
        let signature = ("collateral_signature", "collateral.signature");
        let expired = ("collateral_expired", "collateral.next_update");
        let lists = ("collateral_expired", "collateral.crl");
        let fmspc = ("fmspc_mismatch", "collateral.tcb_info.fmspc");
        let other_collateral = self.other.collateral_lasting(FROM, UNTIL - FROM, 17, None)?.to_json().into_bytes();
        let foreign =
            |name: &str, title: &str| Self::case(name, title, "simulated: tdx-sim, a second platform", &[root]);
        let mut chain: serde_json::Value = serde_json::from_slice(&self.collateral(None)?)?;
        let issuer = chain.get("pck_crl_issuer_chain").cloned();
        if let (Some(fields), Some(issuer)) = (chain.as_object_mut(), issuer) {
            fields.insert("pck_certificate_chain".to_owned(), issuer);
        }
        Ok(vec![
            self.bad_quote(
                "06-other-qe-vendor",
                "another vendor of the quoting enclave",
                V4,
                Fault::OtherQeVendor,
                &[("qe_vendor", "quote.header.qe_vendor_id")],
            )?,
            self.bad_quote(
                "06-other-qe-signer",
                "an enclave of another signer",
                V4,
                Fault::OtherQeSigner,
                &[identity],
            )?,
            self.bad_quote(
                "06-other-qe-product",
                "another enclave of Intel's",
                V5,
                Fault::OtherQeProduct,
                &[identity],
            )?,
            self.bad_quote(
                "07-debug-qe",
                "a quoting enclave in debug mode",
                V4,
                Fault::DebugQe,
                &[("qe_debug", "quote.qe_report.attributes")],
            )?,
            self.bad_collateral(
                "08-revoked-qe",
                "the quoting enclave's version is revoked, everything else holds",
                Fault::RevokedQe,
                &[("qe_revoked", "collateral.qe_identity")],
            )?,
            self.bad_collateral("09-revoked-pck", "the PCK certificate is revoked", Fault::RevokedPck, &[revoked])?,
            self.bad_collateral("09-revoked-ca", "the platform CA is revoked", Fault::RevokedPlatformCa, &[revoked])?,
            self.bad_collateral(
                "09-revoked-tcb-signer",
                "who signed the collateral is revoked",
                Fault::RevokedTcbSigner,
                &[("certificate_revoked", "certificate_chain")],
            )?,
            self.bad_collateral(
                "09-revoked-tcb",
                "the platform's TCB level is revoked",
                Fault::RevokedTcb,
                &[("tcb_revoked", "collateral.tcb_info")],
            )?,
            foreign("10-other-root", "a quote under another root with the same names")?
                .common("collateral", "collateral.json")
                .own("quote", "quote.bin", self.other.quote(&TdReport::example(), V4, None)?),
            foreign("10-other-root-collateral", "collateral under another root")?.common("quote", "quote.bin").own(
                "collateral",
                "collateral.json",
                other_collateral.clone(),
            ),
            foreign("10-other-root-both", "quote and collateral under another root")?
                .own("collateral", "collateral.json", other_collateral)
                .own("quote", "quote.bin", self.other.quote(&TdReport::example(), V5, None)?),
            self.bad_quote(
                "10-forged-report",
                "the TD's report changed after it was signed",
                V4,
                Fault::ForgedReport,
                &[("quote_signature", "quote.signature")],
            )?,
            self.bad_quote(
                "10-forged-qe-report",
                "the enclave's report changed after it was signed",
                V4,
                Fault::ForgedQeReport,
                &[("qe_report_signature", "quote.qe_report_signature")],
            )?,
            self.bad_quote(
                "10-foreign-attestation-key",
                "an attestation key that the enclave's report does not name",
                V5,
                Fault::ForeignAttestationKey,
                &[("qe_report_data", "quote.qe_report.report_data")],
            )?,
            self.bad_collateral("10-forged-tcb-info", "TCB info changed", Fault::ForgedTcbInfo, &[signature])?,
            self.bad_collateral("10-forged-qe-identity", "QE identity changed", Fault::ForgedQeIdentity, &[signature])?,
            Self::case(
                "10-chain-in-collateral",
                "collateral with a PCK chain that is not the quote's",
                "simulated: tdx-sim, `pck_certificate_chain` added",
                &[("collateral_pck_chain", "collateral.pck_certificate_chain")],
            )?
            .common("quote", "quote.bin")
            .own("collateral", "collateral.json", serde_json::to_vec(&chain)?),
            self.bad_collateral("11-sgx-svns-short", "15 SGX components", Fault::ShortSgxComponents, &[malformed])?,
            self.bad_collateral("11-tdx-svns-short", "15 TDX components", Fault::ShortTdxComponents, &[malformed])?,
            self.bad_collateral("11-svns-exchanged", "SGX for TDX components", Fault::SwappedComponents, &[none])?,
            self.bad_quote("11-report-svns-reversed", "TEE_TCB_SVN reversed", V4, Fault::SwappedTeeTcbSvns, &[none])?,
            self.bad_quote(
                "11-pck-svns-short",
                "a PCK certificate with 15 CPU security versions",
                V4,
                Fault::ShortPckSvns,
                &[("pck_malformed", "quote.pck_certificate")],
            )?,
            self.bad_collateral("14-expired", "all collateral has ended", Fault::ExpiredCollateral, &[lists])?,
            self.bad_collateral("14-expired-lists", "the revocation lists have ended", Fault::ExpiredLists, &[lists])?,
            self.bad_collateral("14-expired-tcb-info", "the TCB info has ended", Fault::ExpiredTcbInfo, &[expired])?,
            self.bad_collateral(
                "14-expired-qe-identity",
                "the QE identity ended",
                Fault::ExpiredQeIdentity,
                &[expired],
            )?,
            self.bad_collateral(
                "14-not-yet",
                "collateral of the future",
                Fault::FutureCollateral,
                &[("collateral_not_yet_valid", "collateral.issue_date")],
            )?,
            self.bad_quote(
                "14-expired-pck",
                "the PCK certificate has ended",
                V4,
                Fault::ExpiredPck,
                &[("certificate_expired", "certificate_chain")],
            )?,
            self.bad_collateral("16-other-fmspc", "another kind of platform", Fault::OtherFmspc, &[fmspc])?
                .wire(&[("collateral_missing", "collateral")]),
            self.bad_collateral(
                "16-other-pce-id",
                "another provisioning enclave",
                Fault::OtherPceId,
                &[("pce_id_mismatch", "collateral.tcb_info.pce_id")],
            )?,
        ])
    }
}

pub(super) fn origin(fault: Fault, version: QuoteVersion) -> String {
    let version = if version == V5 { 5 } else { 4 };
    format!("simulated: tdx-sim, fault {} (quote of version {version})", fault.name())
}

pub(super) fn policy(platform: &str) -> Vec<u8> {
    format!("{{\"schema\":\"chrysalis/appraisal-policy/v1\",\"platform\":{{{platform}}}}}\n").into_bytes()
}

pub(super) fn grace(until: u64) -> Vec<u8> {
    policy(&format!(r#""tcb":[{{"status":"UpToDate"}},{{"status":"OutOfDate","until":{until}}}]"#))
}
