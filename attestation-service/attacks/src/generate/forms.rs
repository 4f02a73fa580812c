// SPDX-License-Identifier: Apache-2.0
//! Bytes that are no quote of the known form, and what a policy decides about good ones.

use anyhow::Result;
use tdx_sim::Fault;

use super::quotes::{V4, V5, World, grace, origin, policy};
use super::{FROM, Made};

impl World {
    /// Attacks 12 and 13: what is no quote of the known form.
    pub(super) fn bytes(&self) -> Result<Vec<Made>> {
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
    pub(super) fn policies(&self) -> Result<Vec<Made>> {
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

/// Bytes of a quote's header, and of a TD report 1.0.
const HEADER: usize = 48;
const BODY_10: usize = 584;
