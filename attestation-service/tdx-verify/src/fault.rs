// SPDX-License-Identifier: Apache-2.0
//! Why a quote was refused.

use tdx_spec::{QuoteError, ReadError, TdAttributes, Xfam};
use types::{Refusal, Sha256Digest};

use crate::TcbStatus;

/// All independent reasons why a quote was refused, in the documented order: form, signatures and collateral,
/// TCB and platform, then the TD's own fields. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the quote was refused: {}", .faults.iter().map(QuoteFault::code).collect::<Vec<_>>().join(", "))]
pub struct QuoteRefused {
    /// The reasons.
    pub faults: Vec<QuoteFault>,
}

impl QuoteRefused {
    /// The reasons in the form that users see.
    #[must_use]
    pub fn refusals(&self) -> Vec<Refusal> {
        self.faults.iter().map(QuoteFault::refusal).collect()
    }
}

/// One rule that a quote or its collateral broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuoteFault {
    /// The bytes are no TD quote.
    #[error(transparent)]
    Form(#[from] QuoteError),
    /// The signature section is cut short, has bytes left over, or has another certification data type.
    #[error("{0}")]
    SignatureForm(SignatureForm),
    /// Another vendor's quoting enclave.
    #[error("the header names QE vendor {}, only Intel's is known", hex(.0))]
    QeVendor([u8; 16]),
    /// Not ECDSA with P-256.
    #[error("the attestation key type must be 2 (ECDSA P-256), found {0}")]
    AttestationKeyType(u16),
    /// No collateral is at hand for the quote's kind of platform.
    #[error("there is no collateral for the platform of this quote")]
    CollateralMissing,
    /// The collateral carries a PCK chain other than the quote's own.
    #[error("the collateral carries a PCK certificate chain that is not the quote's own")]
    CollateralPckChain,
    /// Signature, certificate or collateral was refused.
    #[error("{detail}")]
    Chain {
        /// Which rule.
        rule: ChainRule,
        /// What the verifier says.
        detail: String,
    },
    /// The PCE of the certificate is not that of the TCB information.
    #[error("the PCK certificate names PCE {found}, the TCB information is for {expected}")]
    PceId {
        /// Of the TCB information.
        expected: String,
        /// Of the certificate.
        found: String,
    },
    /// `tcbEvaluationDataNumber` went backward.
    #[error("tcbEvaluationDataNumber is {found}, at least {minimum} is demanded")]
    CollateralRollback {
        /// The policy's minimum.
        minimum: u32,
        /// The collateral's.
        found: u32,
    },
    /// The policy does not accept the TCB status.
    #[error("the platform's TCB status is {status} (level of {date} s since 1970){}", ended(.grace_ended))]
    TcbStatus {
        /// The status.
        status: TcbStatus,
        /// Date of the TCB level, seconds since 1970.
        date: u64,
        /// When the policy's grace for that status ended, if there was one.
        grace_ended: Option<u64>,
    },
    /// The policy refuses an advisory that concerns this platform.
    #[error("advisory {0} concerns this platform")]
    Advisory(String),
    /// The policy lists versions of quotes, and this is none of them.
    #[error("the quote is of version {found}, the policy accepts {}", list(.allowed))]
    QuoteVersionNotAllowed {
        /// What the policy accepts.
        allowed: Vec<u16>,
        /// The quote's.
        found: u16,
    },
    /// The policy lists platforms, and this is none of them.
    #[error("platform {0} is not on the policy's list")]
    PlatformNotAllowed(Sha256Digest),
    /// The SEAM module is not signed by Intel.
    #[error("MRSIGNERSEAM must be zero (Intel's signer), found {}", hex(.0))]
    MrSignerSeam([u8; 48]),
    /// The SEAM module has attributes.
    #[error("SEAM attributes must be zero, found {}", hex(.0))]
    SeamAttributes([u8; 8]),
    /// The TD is debuggable.
    #[error("TD attribute DEBUG is set: the host reads the guest's memory")]
    DebugSet,
    /// A named attribute outside of the allow-list.
    #[error("TD attributes {} are set", TdAttributes::names(*.0).join(", "))]
    AttributesNotAllowed(u64),
    /// Reserved attribute bits.
    #[error("reserved TD attributes are set: {}", TdAttributes::names(*.0).join(", "))]
    AttributesReserved(u64),
    /// Without SEPT_VE_DISABLE the host can inject exceptions.
    #[error("TD attribute SEPT_VE_DISABLE is not set")]
    SeptVeDisableOff,
    /// XFAM misses a required component or has one that is not allowed.
    #[error("XFAM {found:#x}: {}", xfam_detail(*.missing, *.unexpected))]
    Xfam {
        /// The mask.
        found: u64,
        /// Required bits that are clear.
        missing: u64,
        /// Set bits outside of the allowed ones.
        unexpected: u64,
    },
    /// A service TD is bound.
    #[error("{field} must be zero, found {}", hex(.found))]
    ServiceTd {
        /// Which field says so.
        field: &'static str,
        /// Its value.
        found: [u8; 48],
    },
    /// The quote is about a partition of a TD, or a TD with devices: neither is known here.
    #[error("{0} must be zero")]
    Extended(&'static str),
}

/// What is wrong with the layout of a quote's signature section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureForm {
    /// Truncated or trailing bytes.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The outer certification data are not a QE report (type 6) or the inner ones no PCK chain (type 5).
    #[error("{field} must be {expected}, found {found}")]
    CertificationType {
        /// Which of the two.
        field: &'static str,
        /// What it must be.
        expected: u16,
        /// What was found.
        found: u16,
    },
}

/// Rules of the certificate chains, signatures and collateral.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the codes of `ChainRule::facts` say it")]
pub enum ChainRule {
    RootUntrusted,
    CertificateExpired,
    CertificateNotYetValid,
    PckRevoked,
    PckMalformed,
    CertificateRevoked,
    CrlExpired,
    CrlInvalid,
    CollateralExpired,
    CollateralNotYetValid,
    CollateralSignature,
    CollateralMalformed,
    FmspcMismatch,
    QeReportSignature,
    QeReportData,
    QeDebug,
    QeIdentity,
    QeRevoked,
    QuoteSignature,
    TcbRevoked,
    TcbLevelNone,
    TdxModule,
    Unverified,
}

impl ChainRule {
    /// Code, field and fix.
    pub(crate) const fn facts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::RootUntrusted => (
                "root_untrusted",
                "certificate_chain",
                "use a quote and collateral whose chains end in the root compiled into this program",
            ),
            Self::CertificateExpired => {
                ("certificate_expired", "certificate_chain", "fetch fresh collateral, or renew the PCK certificate")
            }
            Self::CertificateNotYetValid => {
                ("certificate_not_yet_valid", "certificate_chain", "check the time at which the quote is judged")
            }
            Self::PckRevoked => {
                ("pck_revoked", "quote.pck_certificate", "use another platform: Intel revoked this one's certificate")
            }
            Self::PckMalformed => (
                "pck_malformed",
                "quote.pck_certificate",
                "fetch the platform's PCK certificate again from its source; Intel's extension in this one is malformed",
            ),
            Self::CertificateRevoked => {
                ("certificate_revoked", "certificate_chain", "fetch collateral signed by a certificate that stands")
            }
            Self::CrlExpired => ("collateral_expired", "collateral.crl", "fetch fresh collateral"),
            Self::CrlInvalid => ("crl_invalid", "collateral.crl", "fetch the collateral again from its source"),
            Self::CollateralExpired => ("collateral_expired", "collateral.next_update", "fetch fresh collateral"),
            Self::CollateralNotYetValid => {
                ("collateral_not_yet_valid", "collateral.issue_date", "check the time at which the quote is judged")
            }
            Self::CollateralSignature => {
                ("collateral_signature", "collateral.signature", "fetch the collateral again from its source")
            }
            Self::CollateralMalformed => {
                ("collateral_malformed", "collateral", "fetch the collateral again from its source")
            }
            Self::FmspcMismatch => {
                ("fmspc_mismatch", "collateral.tcb_info.fmspc", "fetch the collateral of this platform's FMSPC")
            }
            Self::QeReportSignature => {
                ("qe_report_signature", "quote.qe_report_signature", "make a new quote; these bytes were changed")
            }
            Self::QeReportData => (
                "qe_report_data",
                "quote.qe_report.report_data",
                "make a new quote; the attestation key is not the QE's",
            ),
            Self::QeDebug => {
                ("qe_debug", "quote.qe_report.attributes", "run Intel's production quoting enclave on the host")
            }
            Self::QeIdentity => {
                ("qe_identity", "quote.qe_report", "run Intel's production quoting enclave, in a version that is known")
            }
            Self::QeRevoked => {
                ("qe_revoked", "collateral.qe_identity", "update the host's quoting enclave: this version is revoked")
            }
            Self::QuoteSignature => {
                ("quote_signature", "quote.signature", "make a new quote; these bytes were changed")
            }
            Self::TcbRevoked => {
                ("tcb_revoked", "collateral.tcb_info", "use another platform: Intel revoked this one's TCB level")
            }
            Self::TcbLevelNone => {
                ("tcb_level_none", "collateral.tcb_info.tcb_levels", "update the platform's microcode and TDX module")
            }
            Self::TdxModule => ("tdx_module", "quote.mr_seam", "run a TDX module that the collateral knows"),
            Self::Unverified => ("quote_unverified", "quote", "make a new quote and fetch fresh collateral"),
        }
    }
}

impl QuoteFault {
    /// Whether this says that the platform's own versions, or its certificate, are not good enough; anything else is wrong
    /// with the quote, the collateral or the time, and tells nothing about the platform.
    #[must_use]
    pub const fn is_of_platform(&self) -> bool {
        use ChainRule as R;
        match self {
            Self::TcbStatus { .. } | Self::Advisory(_) | Self::PlatformNotAllowed(_) => true,
            Self::Chain { rule, .. } => {
                matches!(rule, R::TcbRevoked | R::TcbLevelNone | R::TdxModule | R::QeRevoked | R::PckRevoked)
            }
            _ => false,
        }
    }

    /// Stable code of the rule.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        self.facts().0
    }

    /// The reason in the form that users see.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let (code, field, fix) = self.facts();
        Refusal::new(code, field, self.to_string(), fix)
    }

    const fn facts(&self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Form(error) => form_facts(error),
            Self::SignatureForm(SignatureForm::Read(ReadError::Trailing { .. })) => {
                ("quote_trailing_bytes", "quote.signature", "send exactly the quote's bytes")
            }
            Self::SignatureForm(SignatureForm::Read(ReadError::Truncated { .. })) => {
                ("quote_truncated", "quote.signature", "send the complete quote")
            }
            Self::SignatureForm(SignatureForm::CertificationType { .. }) => (
                "certification_data_type",
                "quote.certification_data",
                "configure the quote generation service to put the PCK certificate chain into quotes",
            ),
            Self::QeVendor(_) => ("qe_vendor", "quote.header.qe_vendor_id", "use Intel's quoting enclave"),
            Self::AttestationKeyType(_) => {
                ("attestation_key_type", "quote.header.attestation_key_type", "use an ECDSA P-256 attestation key")
            }
            Self::CollateralMissing => (
                "collateral_missing",
                "collateral",
                "fetch the collateral of the platform's FMSPC and give it to the verifier",
            ),
            Self::CollateralPckChain => (
                "collateral_pck_chain",
                "collateral.pck_certificate_chain",
                "leave the chain out of the collateral: the quote's own is used",
            ),
            Self::Chain { rule, .. } => rule.facts(),
            Self::PceId { .. } => ("pce_id_mismatch", "collateral.tcb_info.pce_id", "fetch this platform's collateral"),
            Self::CollateralRollback { .. } => {
                ("collateral_rollback", "collateral.tcb_evaluation_data_number", "fetch newer collateral")
            }
            Self::TcbStatus { grace_ended: Some(_), .. } => {
                ("tcb_grace_ended", "tcb.status", "update the platform's microcode and TDX module")
            }
            Self::TcbStatus { status: TcbStatus::OutOfDate | TcbStatus::OutOfDateConfigurationNeeded, .. } => {
                ("tcb_out_of_date", "tcb.status", "update the platform's microcode and TDX module")
            }
            Self::TcbStatus { .. } => {
                ("tcb_status", "tcb.status", "follow the advisories, or accept the status by policy")
            }
            Self::Advisory(_) => {
                ("tcb_advisory", "tcb.advisories", "apply the advisory's update, or accept it by policy")
            }
            Self::QuoteVersionNotAllowed { .. } => (
                "quote_version_not_allowed",
                "quote.header.version",
                "have the host make quotes of a version that the policy accepts",
            ),
            Self::PlatformNotAllowed(_) => {
                ("platform_not_allowed", "platform", "use a platform of the list, or add this one to the policy")
            }
            Self::MrSignerSeam(_) => ("tdx_mr_signer_seam", "mr_signer_seam", "run a TDX module signed by Intel"),
            Self::SeamAttributes(_) => ("tdx_seam_attributes", "seam_attributes", "run a production TDX module"),
            Self::DebugSet => ("tdx_debug_set", "td_attributes.debug", "launch the guest without debugging"),
            Self::AttributesNotAllowed(_) => {
                ("tdx_attributes", "td_attributes", "launch the guest with no attribute but SEPT_VE_DISABLE and PKS")
            }
            Self::AttributesReserved(_) => {
                ("tdx_attributes_reserved", "td_attributes", "launch the guest with reserved attributes clear")
            }
            Self::SeptVeDisableOff => {
                ("tdx_sept_ve_disable_off", "td_attributes.sept_ve_disable", "launch with sept-ve-disable=on")
            }
            Self::Xfam { .. } => ("tdx_xfam", "xfam", "launch the guest with a processor model of the release"),
            Self::ServiceTd { .. } => ("tdx_mr_service_td", "mr_service_td", "launch the guest without service TDs"),
            Self::Extended(_) => {
                ("tdx_extended_body", "td_report", "launch an unpartitioned guest without TDX Connect")
            }
        }
    }
}

const fn form_facts(error: &QuoteError) -> (&'static str, &'static str, &'static str) {
    match error {
        QuoteError::TooLarge(_) => ("quote_too_large", "quote", "send exactly the quote's bytes"),
        QuoteError::Read(ReadError::Trailing { .. }) => {
            ("quote_trailing_bytes", "quote", "send exactly the quote's bytes")
        }
        QuoteError::Read(ReadError::Truncated { .. }) => ("quote_truncated", "quote", "send the complete quote"),
        QuoteError::Version(_) => ("quote_version", "quote.header.version", "make a quote of version 4 or 5"),
        QuoteError::TeeType(_) => ("quote_tee_type", "quote.header.tee_type", "make a quote inside a TDX guest"),
        QuoteError::BodyType(_) | QuoteError::BodySize { .. } => {
            ("quote_body_type", "quote.body", "make a quote with a body of TDX 1.0 or 1.5")
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use core::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn list(numbers: &[u16]) -> String {
    numbers.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

fn ended(grace: &Option<u64>) -> String {
    grace.map_or_else(String::new, |at| format!(", and the policy's grace for it ended at {at} s since 1970"))
}

fn xfam_detail(missing: u64, unexpected: u64) -> String {
    let mut parts = Vec::new();
    if missing != 0 {
        parts.push(format!("{} must be set", Xfam::names(missing).join(", ")));
    }
    if unexpected != 0 {
        parts.push(format!("{} must be clear", Xfam::names(unexpected).join(", ")));
    }
    parts.join("; ")
}
