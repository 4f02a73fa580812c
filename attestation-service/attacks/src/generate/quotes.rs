// SPDX-License-Identifier: Apache-2.0
//! Quotes and collateral of a simulated platform, good and bad in one way each.

use std::path::Path;

use anyhow::{Context as _, Result};
use tdx_sim::{Fault, QuoteVersion, SimulatedPlatform, TdParams, TdReport};
use types::{Registers, Sha384Digest};

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

struct World {
    platform: SimulatedPlatform,
    other: SimulatedPlatform,
}

const V4: QuoteVersion = QuoteVersion::V4;
const V5: QuoteVersion = QuoteVersion::V5;

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

    fn collateral(&self, fault: Option<Fault>) -> Result<Vec<u8>> {
        self.numbered(17, fault)
    }

    fn numbered(&self, number: u32, fault: Option<Fault>) -> Result<Vec<u8>> {
        Ok(self.platform.collateral_lasting(FROM, UNTIL - FROM, number, fault)?.to_json().into_bytes())
    }

    fn quote(&self, version: QuoteVersion, fault: Option<Fault>) -> Result<Vec<u8>> {
        Ok(self.platform.quote(&report(), version, fault)?)
    }

    /// A case with the good root and everything else its own.
    fn case(name: &str, title: &str, origin: &str, expected: &[(&str, &str)]) -> Result<Made> {
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
    fn bad_collateral(&self, name: &str, title: &str, fault: Fault, expected: &[(&str, &str)]) -> Result<Made> {
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
            let report = TdReport { attributes: bits.to_le_bytes(), ..report() };
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
                .own("quote", "quote.bin", self.other.quote(&report(), V4, None)?),
            foreign("10-other-root-collateral", "collateral under another root")?.common("quote", "quote.bin").own(
                "collateral",
                "collateral.json",
                other_collateral.clone(),
            ),
            foreign("10-other-root-both", "quote and collateral under another root")?
                .own("collateral", "collateral.json", other_collateral)
                .own("quote", "quote.bin", self.other.quote(&report(), V5, None)?),
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
                &[("quote_unverified", "quote")],
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

    /// Attacks 12 and 13: what is no quote of the known form.
    fn bytes(&self) -> Result<Vec<Made>> {
        let (four, five) = (self.quote(V4, None)?, self.quote(V5, None)?);
        let case = |name: &str, title: &str, bytes: Vec<u8>, expected: &[(&str, &str)]| -> Result<Made> {
            let origin = "simulated: tdx-sim, bytes of a good quote changed afterwards";
            let case = Self::case(name, title, origin, expected)?.common("collateral", "collateral.json");
            Ok(case.own("quote", "quote.bin", bytes))
        };
        let with = |quote: &[u8], changes: &[(usize, u8)]| {
            let mut bytes = quote.to_vec();
            for (place, value) in changes {
                if let Some(byte) = bytes.get_mut(*place) {
                    *byte = *value;
                }
            }
            bytes
        };
        let first = |quote: &[u8], len: usize| quote.iter().copied().take(len).collect();
        let longer = |quote: &[u8], len: usize| {
            let mut bytes = quote.to_vec();
            bytes.resize(len, 0);
            bytes
        };
        let version = ("quote_version", "quote.header.version");
        let trailing = ("quote_trailing_bytes", "quote");
        let inside = ("quote_trailing_bytes", "quote.signature");
        let short = ("quote_truncated", "quote");
        let mut extra = four.clone();
        extra.push(0);
        // Length of the signature data: one more, and a byte more.
        let length_at = HEADER + BODY_10;
        let mut longer_signature = extra.clone();
        let signature = u32::try_from(four.len() - length_at - 4)?.saturating_add(1);
        if let Some(field) = longer_signature.get_mut(length_at..length_at + 4) {
            field.copy_from_slice(&signature.to_le_bytes());
        }
        Ok(vec![
            case("12-version-3", "version 3, as SGX has", with(&four, &[(0, 3)]), &[version])?,
            case("12-version-6", "a version of the future", with(&five, &[(0, 6)]), &[version])?,
            case(
                "12-tee-sgx",
                "of SGX, not of TDX",
                with(&four, &[(4, 0)]),
                &[("quote_tee_type", "quote.header.tee_type")],
            )?,
            case(
                "12-body-sgx",
                "version 5 with the body of an SGX enclave",
                with(&five, &[(HEADER, 1)]),
                &[("quote_body_type", "quote.body")],
            )?,
            case(
                "12-key-type",
                "an attestation key of another kind",
                with(&four, &[(2, 3)]),
                &[("attestation_key_type", "quote.header.attestation_key_type")],
            )?,
            case("13-trailing-byte", "a byte behind the quote", extra, &[trailing])?,
            case("13-trailing-byte-in-signature", "a byte behind the signature", longer_signature, &[inside])?,
            case("13-truncated", "the last byte is missing", first(&four, four.len() - 1), &[short])?,
            case("13-header-alone", "a header, no more", first(&four, HEADER), &[short])?,
            case("13-empty", "no byte", Vec::new(), &[short])?,
            case("13-oversized", "40,000 bytes", longer(&four, 40_000), &[("quote_too_large", "quote")])?
                .wire(&[("evidence_malformed", "evidence")]),
            // Two sources pad their quotes with zeros: a file may be padded, evidence may not.
            case("00-padded", "padded to 8,000 bytes, as cloud agents write", longer(&four, 8_000), &[])?
                .wire(&[trailing]),
        ])
    }

    /// Attacks 15, 18, 19: what the policy decides.
    fn policies(&self) -> Result<Vec<Made>> {
        let status = ("tcb_out_of_date", "tcb.status");
        let old = self.collateral(Some(Fault::OutOfDateTcb))?;
        let case = |name: &str, title: &str, fault: Fault, expected: &[(&str, &str)]| -> Result<Made> {
            Ok(Self::case(name, title, &origin(fault, V4), expected)?.common("quote", "quote.bin"))
        };
        Ok(vec![
            Self::case(
                "15-older-evaluation",
                "collateral of an older TCB evaluation than the policy's least",
                "simulated: tdx-sim, tcbEvaluationDataNumber 16",
                &[("collateral_rollback", "collateral.tcb_evaluation_data_number")],
            )?
            .common("quote", "quote.bin")
            .own("collateral", "collateral.json", self.numbered(16, None)?)
            .own("policy", "policy.json", policy(r#""min_tcb_evaluation_data_number":17"#)),
            case(
                "18-advisory",
                "UpToDate, with an advisory that the policy refuses",
                Fault::AdvisoryUpToDate,
                &[("tcb_advisory", "tcb.advisories")],
            )?
            .own("collateral", "collateral.json", self.collateral(Some(Fault::AdvisoryUpToDate))?)
            .own("policy", "policy.json", policy(r#""refused_advisories":["SIMULATED-SA-00001"]"#)),
            case("19-out-of-date", "OutOfDate, no grace", Fault::OutOfDateTcb, &[status])?.own(
                "collateral",
                "collateral.json",
                old.clone(),
            ),
            case(
                "19-grace-ended",
                "OutOfDate, after the policy's grace",
                Fault::OutOfDateTcb,
                &[("tcb_grace_ended", "tcb.status")],
            )?
            .own("collateral", "collateral.json", old.clone())
            .own("policy", "policy.json", grace(FROM)),
            case(
                "19-grace-and-advisory",
                "OutOfDate inside the grace, with an advisory that the policy refuses",
                Fault::OutOfDateTcb,
                &[("tcb_advisory", "tcb.advisories")],
            )?
            .own("collateral", "collateral.json", old)
            .own(
                "policy",
                "policy.json",
                policy(r#""tcb":[{"status":"OutOfDate"}],"refused_advisories":["simulated-sa-00001"]"#),
            ),
            self.bad_collateral("19-out-of-date-qe", "an old quoting enclave", Fault::OutOfDateQe, &[status])?,
            self.bad_collateral(
                "19-no-level",
                "no TCB level fits",
                Fault::NoTcbLevel,
                &[("tcb_level_none", "collateral.tcb_info.tcb_levels")],
            )?,
            self.bad_collateral(
                "19-configuration-needed",
                "a status that the policy does not name",
                Fault::ConfigurationNeeded,
                &[("tcb_status", "tcb.status")],
            )?,
        ])
    }
}

fn origin(fault: Fault, version: QuoteVersion) -> String {
    let version = if version == V5 { 5 } else { 4 };
    format!("simulated: tdx-sim, fault {} (quote of version {version})", fault.name())
}

fn report() -> TdReport {
    let value = |text: &str| Sha384Digest::of(text.as_bytes());
    let registers = Registers {
        mr_td: value("mr_td"),
        rtmr_0: value("rtmr_0"),
        rtmr_1: value("rtmr_1"),
        rtmr_2: value("rtmr_2"),
        rtmr_3: value("rtmr_3"),
        mr_config_id: value("config"),
        mr_owner: Sha384Digest::ZERO,
        mr_owner_config: Sha384Digest::ZERO,
    };
    let params = TdParams::with_config(registers.mr_config_id);
    TdReport { registers, attributes: params.attributes, xfam: params.xfam, report_data: [7; 64] }
}

fn policy(platform: &str) -> Vec<u8> {
    format!("{{\"schema\":\"chrysalis/appraisal-policy/v1\",\"platform\":{{{platform}}}}}\n").into_bytes()
}

fn grace(until: u64) -> Vec<u8> {
    policy(&format!(r#""tcb":[{{"status":"UpToDate"}},{{"status":"OutOfDate","until":{until}}}]"#))
}

/// Bytes of a quote's header, and of a TD report 1.0.
const HEADER: usize = 48;
const BODY_10: usize = 584;
