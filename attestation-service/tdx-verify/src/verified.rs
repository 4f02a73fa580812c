// SPDX-License-Identifier: Apache-2.0
//! What a verified quote says.

use tdx_spec::{Quote, QuoteVersion, TdAttributes, Xfam};
use types::{Registers, Sha256Digest, Sha384Digest};

use crate::{Hardware, policy::Tcb};

/// A quote whose signatures, certificates, collateral, TCB and TD fields were accepted. Only [`crate::verify`] makes one.
///
/// It does not establish what the registers should be, nor to whom REPORTDATA binds the guest.
#[derive(Debug, Clone)]
pub struct VerifiedQuote {
    pub(crate) registers: Registers,
    pub(crate) report_data: [u8; 64],
    pub(crate) hardware: Hardware,
    pub(crate) version: QuoteVersion,
    pub(crate) td_attributes: TdAttributes,
    pub(crate) xfam: Xfam,
    pub(crate) mr_seam: Sha384Digest,
    pub(crate) tee_tcb_svn: [u8; 16],
    pub(crate) tcb: Tcb,
    pub(crate) platform: Sha256Digest,
    pub(crate) fmspc: [u8; 6],
    pub(crate) collateral_expires: u64,
    pub(crate) digest: Sha256Digest,
}

impl VerifiedQuote {
    /// The measurement registers.
    #[must_use]
    pub const fn registers(&self) -> &Registers {
        &self.registers
    }

    /// The 64 bytes that the guest had reported.
    #[must_use]
    pub const fn report_data(&self) -> &[u8; 64] {
        &self.report_data
    }

    /// Under which anchors the quote was verified.
    #[must_use]
    pub const fn hardware(&self) -> Hardware {
        self.hardware
    }

    /// Version of the quote's format.
    #[must_use]
    pub const fn version(&self) -> QuoteVersion {
        self.version
    }

    /// Attributes of the TD; nothing outside of [`crate::ATTRIBUTES_ALLOWED`].
    #[must_use]
    pub const fn td_attributes(&self) -> TdAttributes {
        self.td_attributes
    }

    /// XSAVE components of the TD; nothing outside of [`crate::XFAM_ALLOWED`].
    #[must_use]
    pub const fn xfam(&self) -> Xfam {
        self.xfam
    }

    /// Measurement of the TDX module.
    #[must_use]
    pub const fn mr_seam(&self) -> &Sha384Digest {
        &self.mr_seam
    }

    /// Security versions of the TDX module.
    #[must_use]
    pub const fn tee_tcb_svn(&self) -> &[u8; 16] {
        &self.tee_tcb_svn
    }

    /// TCB as the collateral judges it; accepted by policy.
    #[must_use]
    pub const fn tcb(&self) -> &Tcb {
        &self.tcb
    }

    /// Name of the platform: SHA-256("chrysalis/platform/v1" ‖ PPID of the PCK certificate).
    #[must_use]
    pub const fn platform(&self) -> &Sha256Digest {
        &self.platform
    }

    /// Kind of the platform.
    #[must_use]
    pub const fn fmspc(&self) -> &[u8; 6] {
        &self.fmspc
    }

    /// Earliest end of validity among certificates, lists and collateral, seconds since 1970. The verdict
    /// must not outlive it.
    #[must_use]
    pub const fn collateral_expires(&self) -> u64 {
        self.collateral_expires
    }

    /// SHA-256 of the quote's bytes.
    #[must_use]
    pub const fn digest(&self) -> &Sha256Digest {
        &self.digest
    }
}

/// The registers of a parsed quote.
pub(crate) fn registers(quote: &Quote<'_>) -> Registers {
    let report = quote.body.report();
    Registers {
        mr_td: Sha384Digest::from_bytes(report.mr_td),
        rtmr_0: Sha384Digest::from_bytes(report.rtmr_0),
        rtmr_1: Sha384Digest::from_bytes(report.rtmr_1),
        rtmr_2: Sha384Digest::from_bytes(report.rtmr_2),
        rtmr_3: Sha384Digest::from_bytes(report.rtmr_3),
        mr_config_id: Sha384Digest::from_bytes(report.mr_config_id),
        mr_owner: Sha384Digest::from_bytes(report.mr_owner),
        mr_owner_config: Sha384Digest::from_bytes(report.mr_owner_config),
    }
}
