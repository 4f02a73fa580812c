// SPDX-License-Identifier: Apache-2.0
//! What is the same for every device: form, certificates, signature, nonce, firmware digest, revocation.

use types::Sha256Digest;

use crate::{
    appraisal::{DeviceEvidence, GpuAppraisal},
    certificate::{Cert, parse_pem},
    chain::{self, ChainFault},
    device::DeviceFacts,
    ocsp::{self, Said, Status},
    policy::Requirement,
    spdm::SpdmReport,
    verdict::{Checks, Rule, absent},
};

/// One device's evidence, with every common check noted. Not proof of anything: the checks say that.
#[derive(Debug)]
pub(crate) struct Judged<'a> {
    /// `gpu[0]`.
    pub(crate) name: &'a str,
    pub(crate) report: SpdmReport,
    pub(crate) facts: DeviceFacts,
    pub(crate) leaf: Sha256Digest,
    pub(crate) revocation_checked: bool,
    /// Last second (since 1970) at which its certificates, and the OCSP answers about them, are valid.
    pub(crate) expires: u64,
}

/// Notes all common checks. `None` when the evidence cannot be read, which is noted, too.
pub(crate) fn judge_device<'a>(
    appraisal: &GpuAppraisal<'_>,
    name: &'a str,
    device: DeviceEvidence<'_>,
    checks: &mut Checks,
) -> Option<Judged<'a>> {
    let report = SpdmReport::parse(device.report);
    if let Err(malformed) = &report {
        checks.add(false, MALFORMED, format!("{name}.report"), "an SPDM 1.1 measurement report", malformed);
    }
    let chain = match parse_pem(device.chain) {
        Ok(chain) => chain,
        Err(rule) => {
            checks.add(false, CHAIN_MALFORMED, format!("{name}.chain"), "certificates in PEM", rule);
            return None;
        }
    };
    check_chain(appraisal, name, &chain, checks);
    let (report, leaf) = (report.ok()?, chain.first()?);
    let field = format!("{name}.report.signature");
    let signed = leaf.verifies_fixed(report.signed(device.report), &report.signature);
    let found = if signed { "good" } else { "not by that key" };
    checks.add(signed, SIGNATURE, field, "by the key of the first certificate", found);
    check_nonce(appraisal, name, &report, checks);
    let (revocation_checked, answered) = check_revocation(appraisal, name, &chain, checks);
    let facts = DeviceFacts::read(&chain);
    let expires = chain.iter().map(|certificate| certificate.validity().1).fold(answered, u64::min);
    Some(Judged { name, report, facts, leaf: leaf.digest(), revocation_checked, expires })
}

fn check_chain(appraisal: &GpuAppraisal<'_>, name: &str, chain: &[Cert], checks: &mut Checks) {
    let faults = chain::faults(chain, appraisal.anchors.device_root(), appraisal.now);
    let field = format!("{name}.chain");
    let expected = "a valid chain to the compiled-in root";
    if faults.is_empty() {
        checks.add(true, CHAIN, field, expected, format!("{} certificates", chain.len()));
        return;
    }
    for fault in faults {
        checks.add(false, rule(&fault), &field, expected, fault);
    }
}

const fn rule(fault: &ChainFault) -> Rule {
    match fault {
        ChainFault::Malformed(_) => CHAIN_MALFORMED,
        ChainFault::Root { .. } => ROOT,
        ChainFault::Expired { .. } => EXPIRED,
        ChainFault::NotYetValid { .. } => NOT_YET_VALID,
        ChainFault::Signature { .. } => CHAIN_SIGNATURE,
        _ => CHAIN,
    }
}

fn check_nonce(appraisal: &GpuAppraisal<'_>, name: &str, report: &SpdmReport, checks: &mut Checks) {
    if let Some(nonce) = appraisal.nonce {
        let good = *nonce == report.nonce;
        checks.add(good, NONCE, format!("{name}.report.nonce"), hex::encode(nonce), hex::encode(report.nonce));
    }
}

/// The digest of the firmware that holds the key: in the report and in the certificate of that key.
pub(crate) fn check_firmware(
    judged: &Judged<'_>,
    reported: Option<&[u8; 48]>,
    requirement: Requirement,
    checks: &mut Checks,
) {
    let field = format!("{}.report.fwid", judged.name);
    let certified = match &judged.facts.firmware {
        Some(Err(rule)) => {
            checks.add(false, FWID, &field, "a digest in the certificate", format!("an extension that {rule}"));
            return;
        }
        Some(Ok(firmware)) => {
            let found = if firmware.insecure { "notSecure or debug" } else { "neither" };
            let flags = format!("{}.chain.operational_flags", judged.name);
            checks.add(!firmware.insecure, INSECURE, flags, "neither notSecure nor debug", found);
            Some(&firmware.fwid)
        }
        None => None,
    };
    let text = |fwid: Option<&[u8; 48]>| fwid.map_or_else(|| "none".to_owned(), hex::encode);
    let good = match (reported, certified) {
        // Firmware of 2023 does not report it; NVIDIA's verifier accepts that, a policy may not.
        (None, _) => requirement == Requirement::Optional,
        (Some(reported), certified) => certified == Some(reported),
    };
    let found = reported.map_or_else(|| absent(good).to_owned(), hex::encode);
    checks.add(good, FWID, field, text(certified), found);
}

/// Revocation of what NVIDIA issued: the root is pinned, and the leaf is made by the device itself. Whether all is known to be good,
/// and until when.
fn check_revocation(appraisal: &GpuAppraisal<'_>, name: &str, chain: &[Cert], checks: &mut Checks) -> (bool, u64) {
    let (mut all_good, mut expires) = (true, u64::MAX);
    let issued = chain.iter().zip(chain.iter().skip(1)).enumerate().skip(1);
    for (index, (certificate, issuer)) in issued {
        let Said { status, until } = ocsp::status(certificate, issuer, appraisal.ocsp, appraisal.now);
        all_good &= status == Status::Good;
        expires = expires.min(until);
        let (rule, found) = match status {
            Status::Good => (REVOKED, "good"),
            Status::Absent if appraisal.policy.revocation == Requirement::Optional => continue,
            Status::Absent => (REVOCATION_UNKNOWN, "no answer is about it"),
            Status::Revoked => (REVOKED, "revoked"),
            Status::Unknown => (REVOCATION_UNKNOWN, "the responder does not know it"),
            Status::Expired => (OCSP_EXPIRED, "an answer whose time is over or has not begun"),
            Status::Signature => (OCSP_SIGNATURE, "an answer that its issuer did not sign"),
        };
        checks.add(status == Status::Good, rule, format!("{name}.chain[{index}].revocation"), "good", found);
    }
    (all_good, expires)
}

const MALFORMED: Rule = ("gpu_report_malformed", "collect the report again");
const CHAIN_MALFORMED: Rule = ("gpu_chain_malformed", "collect the certificates again");
const CHAIN: Rule = ("gpu_chain", "use a device whose certificates NVIDIA issued");
const CHAIN_SIGNATURE: Rule = ("gpu_chain_signature", "use a device whose certificates NVIDIA issued");
const ROOT: Rule = ("gpu_root_untrusted", "use a device whose certificates end in the root compiled into this program");
const EXPIRED: Rule = ("gpu_certificate_expired", "collect the certificates again; check the time of judgement");
const NOT_YET_VALID: Rule = ("gpu_certificate_not_yet_valid", "check the time at which the evidence is judged");
const SIGNATURE: Rule = ("gpu_report_signature", "give the report and the certificates of the same device, unchanged");
const NONCE: Rule = ("gpu_nonce", "collect the report anew with the nonce of this guest and epoch");
const FWID: Rule = ("gpu_fwid", "use firmware that reports the digest in its certificate");
const INSECURE: Rule = ("gpu_firmware_debug", "use a device in its production state");
const REVOKED: Rule = ("gpu_revoked", "use another device: this one's certificates are revoked");
const REVOCATION_UNKNOWN: Rule = ("gpu_revocation_unknown", "give fresh OCSP answers for every issued certificate");
const OCSP_EXPIRED: Rule = ("gpu_ocsp_expired", "give fresh OCSP answers");
const OCSP_SIGNATURE: Rule = ("gpu_ocsp_signature", "fetch the OCSP answers again");
