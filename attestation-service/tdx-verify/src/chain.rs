// SPDX-License-Identifier: Apache-2.0
//! Names the rule behind a refusal of `dcap-qvl`, which says it in words only.
//!
//! This never turns a refusal into an acceptance: a message that is not known becomes
//! [`ChainRule::Unverified`]. Tests against real and simulated quotes pin each mapping, so that a new version
//! of the library with other words is noticed.

use der::Decode as _;
use serde::Deserialize;

use crate::{
    collateral::Collateral,
    fault::{ChainRule, QuoteFault},
    signature::SignatureSection,
};

/// The fault behind `error`, or `None` when [`crate::body`] already reports it from the quote's own bytes.
pub(crate) fn fault(
    error: &impl core::fmt::Debug,
    quote: &[u8],
    section: &SignatureSection<'_>,
    collateral: &Collateral,
) -> Option<QuoteFault> {
    // The error's Debug form holds the whole chain of causes (and a back trace, which names no rule).
    let text = format!("{error:?}");
    let text = text.split("Stack backtrace:").next().unwrap_or_default();
    if BODY_MESSAGES.iter().any(|message| text.starts_with(message)) {
        return None;
    }
    let rule =
        MESSAGES.iter().find(|(needle, _)| text.contains(needle)).map_or(ChainRule::Unverified, |(_, rule)| *rule);
    let rule = match rule {
        ChainRule::CertificateRevoked if pck_is_revoked(quote, collateral) => ChainRule::PckRevoked,
        ChainRule::TcbRevoked if qe_is_revoked(section.qe.isv_svn, collateral) => ChainRule::QeRevoked,
        other => other,
    };
    let detail = text.split_whitespace().collect::<Vec<_>>().join(" ");
    Some(QuoteFault::Chain { rule, detail: detail.chars().take(MAX_DETAIL).collect() })
}

/// True when a certificate of the quote's chain stands on one of the two revocation lists.
fn pck_is_revoked(quote: &[u8], collateral: &Collateral) -> bool {
    let Some(chain) =
        dcap_qvl::quote::Quote::parse(quote).ok().and_then(|quote| dcap_qvl::intel::extract_cert_chain(&quote).ok())
    else {
        return false;
    };
    let serials: Vec<_> = chain
        .iter()
        .filter_map(|der| x509_cert::Certificate::from_der(der).ok())
        .map(|certificate| certificate.tbs_certificate().serial_number().clone())
        .collect();
    [&collateral.inner.pck_crl, &collateral.inner.root_ca_crl]
        .into_iter()
        .filter_map(|crl| x509_cert::crl::CertificateList::<x509_cert::certificate::Rfc5280>::from_der(crl).ok())
        .flat_map(|crl| crl.tbs_cert_list.revoked_certificates.unwrap_or_default())
        .any(|entry| serials.contains(&entry.serial_number))
}

/// True when the quoting enclave's own level is what is revoked.
fn qe_is_revoked(isv_svn: u16, collateral: &Collateral) -> bool {
    serde_json::from_str::<QeIdentity>(&collateral.inner.qe_identity).is_ok_and(|identity| {
        identity
            .tcb_levels
            .iter()
            .find(|level| isv_svn >= level.tcb.isvsvn)
            .is_some_and(|level| level.tcb_status == "Revoked")
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct QeIdentity {
    tcb_levels: Vec<QeLevel>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct QeLevel {
    tcb: QeTcb,
    tcb_status: String,
}

#[derive(Deserialize)]
struct QeTcb {
    isvsvn: u16,
}

const MAX_DETAIL: usize = 300;

/// Refusals of the TD's own fields, which [`crate::body`] judges more strictly.
const BODY_MESSAGES: [&str; 6] = [
    "Debug mode is enabled",
    "TD profiling is enabled",
    "Reserved bits in TD attributes are set",
    "TD migration is enabled",
    "SEPT_VE_DISABLE is not enabled",
    "SERVTD_EXT is enabled",
];

/// In the order in which they are looked for: the more exact words first.
const MESSAGES: [(&str, ChainRule); 43] = [
    ("InvalidCrlSignatureForPublicKey", ChainRule::RootUntrusted),
    ("UnknownIssuer", ChainRule::RootUntrusted),
    ("Failed to load root ca", ChainRule::RootUntrusted),
    ("InvalidSignatureForPublicKey", ChainRule::RootUntrusted),
    ("CertRevoked", ChainRule::CertificateRevoked),
    ("CertExpired", ChainRule::CertificateExpired),
    ("CertNotValidYet", ChainRule::CertificateNotYetValid),
    ("CrlExpired", ChainRule::CrlExpired),
    ("UnknownRevocationStatus", ChainRule::CrlInvalid),
    ("Failed to parse root CA CRL", ChainRule::CrlInvalid),
    ("Failed to parse PCK CRL", ChainRule::CrlInvalid),
    ("TCBInfo expired", ChainRule::CollateralExpired),
    ("QE Identity expired", ChainRule::CollateralExpired),
    ("issue date is in the future", ChainRule::CollateralNotYetValid),
    ("Signature is invalid for tcb_info", ChainRule::CollateralSignature),
    ("Signature is invalid for qe_identity", ChainRule::CollateralSignature),
    ("Signature is invalid for qe_report", ChainRule::QeReportSignature),
    ("QE report hash mismatch", ChainRule::QeReportData),
    ("Invalid QE auth data length", ChainRule::QeReportData),
    ("QE report validation failed", ChainRule::QeDebug),
    ("QE ISVSVN", ChainRule::QeIdentity),
    ("QE ISVPRODID mismatch", ChainRule::QeIdentity),
    ("QE MRSIGNER mismatch", ChainRule::QeIdentity),
    ("QE MISCSELECT mismatch", ChainRule::QeIdentity),
    ("QE ATTRIBUTES mismatch", ChainRule::QeIdentity),
    ("ISV enclave report signature is invalid", ChainRule::QuoteSignature),
    ("CpuSvn length mismatch", ChainRule::PckMalformed),
    ("PceSvn length mismatch", ChainRule::PckMalformed),
    ("Failed to find PceSvn", ChainRule::PckMalformed),
    ("Fmspc length mismatch", ChainRule::PckMalformed),
    ("Failed to find Fmspc", ChainRule::PckMalformed),
    ("Intel extension not found", ChainRule::PckMalformed),
    ("OID is missing", ChainRule::PckMalformed),
    ("Fmspc mismatch", ChainRule::FmspcMismatch),
    ("TCB status is invalid: Revoked", ChainRule::TcbRevoked),
    ("No matching TCB level found", ChainRule::TcbLevelNone),
    ("TDX module", ChainRule::TdxModule),
    ("component count mismatch", ChainRule::CollateralMalformed),
    ("Failed to decode TcbInfo", ChainRule::CollateralMalformed),
    ("Failed to decode QeIdentity", ChainRule::CollateralMalformed),
    ("Unsupported QE Identity", ChainRule::CollateralMalformed),
    ("Certificate chain is too short", ChainRule::CollateralMalformed),
    ("Failed to parse certs", ChainRule::CollateralMalformed),
];
