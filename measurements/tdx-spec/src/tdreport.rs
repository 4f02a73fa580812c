// SPDX-License-Identifier: Apache-2.0
//! TDREPORT: what the TDX module gives a TD about itself, before it becomes a quote.
//!
//! Source: Intel TDX Module v1.5 ABI Specification (348551-004US), chapter "ABI Reference: Data Types", tables
//! "TDREPORT_STRUCT", "REPORTMACSTRUCT", "REPORTTYPE", "TEE_TCB_INFO" and "TDINFO_STRUCT"; offsets compared with
//! `tee_tcb_info_v1_5_t` and `tee_info_v1_5_t` of `sgx_quote_5.h` in Intel's SGXDataCenterAttestationPrimitives
//! (commit 6c1a9ab), and with Linux `tools/testing/selftests/tdx/tdx_guest_test.c`. The MAC is checked only by the processor (SEAMVERIFYREPORT): read from the module by the TD itself a report is true; handed over by
//! anybody else it proves nothing, and its hashes, which anybody can compute, prove nothing either.

use core::mem::offset_of;

use crate::{Cursor, ReadError, TdAttributes, Xfam};

/// A TD report (`TDREPORT_STRUCT`), 1,024 bytes. All fields are as found; only type and size are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct TdReport {
    /// What the processor signs with its MAC.
    pub mac: ReportMac,
    /// The TDX module.
    pub tcb: TeeTcbInfo,
    /// Reserved.
    pub reserved: [u8; 17],
    /// The TD.
    pub td: TdInfo,
}

/// `REPORTMACSTRUCT`, 256 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct ReportMac {
    /// `REPORTTYPE.TYPE`; [`REPORT_TYPE_TDX`].
    pub report_type: u8,
    /// `REPORTTYPE.SUBTYPE`; 0.
    pub subtype: u8,
    /// `REPORTTYPE.VERSION`; 0, or 1 when service TDs are bound.
    pub version: u8,
    /// Reserved byte of `REPORTTYPE`.
    pub reserved_type: u8,
    /// Reserved.
    pub reserved_1: [u8; 12],
    /// Security versions of the processor.
    pub cpu_svn: [u8; 16],
    /// SHA-384 of `TEE_TCB_INFO` ([`TdReport::tcb`]).
    pub tee_tcb_info_hash: [u8; 48],
    /// SHA-384 of `TDINFO_STRUCT` ([`TdReport::td`]).
    pub tee_info_hash: [u8; 48],
    /// What the TD asked to have reported.
    pub report_data: [u8; 64],
    /// Reserved.
    pub reserved_2: [u8; 32],
    /// HMAC-SHA-256 with a key that only this processor has, over the fields before.
    pub mac: [u8; 32],
}

/// `TEE_TCB_INFO`, 239 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct TeeTcbInfo {
    /// Which fields are valid, bit n for what starts at offset 8 × n; `0x301ff` where the module can be updated
    /// under running TDs (`SEAMDB_ENABLED`), else `0x1ff`.
    pub valid: [u8; 8],
    /// Security version numbers of the TDX module and its loader when the TD started.
    pub tee_tcb_svn: [u8; 16],
    /// Measurement of the TDX module (SHA-384).
    pub mr_seam: [u8; 48],
    /// Signer of the TDX module; zero for Intel's.
    pub mr_signer_seam: [u8; 48],
    /// Attributes of the TDX module; zero for TDX 1.0 and 1.5.
    pub seam_attributes: [u8; 8],
    /// Security version numbers of the module that is loaded now (TDX 1.5); reserved in TDX 1.0.
    pub tee_tcb_svn_2: [u8; 16],
    /// Reserved.
    pub reserved: [u8; 95],
}

/// `TDINFO_STRUCT`, 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct TdInfo {
    /// Attributes of the TD.
    pub td_attributes: TdAttributes,
    /// Extended features the TD may use.
    pub xfam: Xfam,
    /// Measurement of the TD's initial contents.
    pub mr_td: [u8; 48],
    /// Configuration identity chosen by the TD's creator.
    pub mr_config_id: [u8; 48],
    /// Owner identity chosen by the TD's creator.
    pub mr_owner: [u8; 48],
    /// Owner-defined configuration chosen by the TD's creator.
    pub mr_owner_config: [u8; 48],
    /// Run-time measurement registers 0 to 3.
    pub rtmr: [[u8; 48]; 4],
    /// Hash over the bound service TDs; zero for none. Reserved in TDX 1.0.
    pub service_td_hash: [u8; 48],
    /// Reserved.
    pub reserved: [u8; 64],
}

/// Why bytes are no TD report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TdReportError {
    /// Truncated or trailing bytes.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The report is not about a TD.
    #[error("report type must be 0x81 (TDX), found {0:#x}")]
    ReportType(u8),
}

impl TdReport {
    /// Size in bytes.
    pub const LEN: usize = 1024;

    /// Reads a report from exactly its bytes.
    ///
    /// # Errors
    /// [`TdReportError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, TdReportError> {
        let mut cursor = Cursor::new(bytes);
        let report = Self {
            mac: ReportMac::read(&mut cursor)?,
            tcb: TeeTcbInfo::read(&mut cursor)?,
            reserved: cursor.array("reserved")?,
            td: TdInfo::read(&mut cursor)?,
        };
        cursor.finish()?;
        Ok(report)
    }
}

impl ReportMac {
    /// Size in bytes.
    pub const LEN: usize = 256;

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, TdReportError> {
        let [report_type, subtype, version, reserved_type] = cursor.array("report_type")?;
        if report_type != REPORT_TYPE_TDX {
            return Err(TdReportError::ReportType(report_type));
        }
        Ok(Self {
            report_type,
            subtype,
            version,
            reserved_type,
            reserved_1: cursor.array("reserved")?,
            cpu_svn: cursor.array("cpu_svn")?,
            tee_tcb_info_hash: cursor.array("tee_tcb_info_hash")?,
            tee_info_hash: cursor.array("tee_info_hash")?,
            report_data: cursor.array("report_data")?,
            reserved_2: cursor.array("reserved")?,
            mac: cursor.array("mac")?,
        })
    }
}

impl TeeTcbInfo {
    /// Size in bytes.
    pub const LEN: usize = 239;

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, ReadError> {
        Ok(Self {
            valid: cursor.array("valid")?,
            tee_tcb_svn: cursor.array("tee_tcb_svn")?,
            mr_seam: cursor.array("mr_seam")?,
            mr_signer_seam: cursor.array("mr_signer_seam")?,
            seam_attributes: cursor.array("seam_attributes")?,
            tee_tcb_svn_2: cursor.array("tee_tcb_svn_2")?,
            reserved: cursor.array("reserved")?,
        })
    }
}

impl TdInfo {
    /// Size in bytes.
    pub const LEN: usize = 512;

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, ReadError> {
        Ok(Self {
            td_attributes: TdAttributes::from_bytes(cursor.array("attributes")?),
            xfam: Xfam::from_bytes(cursor.array("xfam")?),
            mr_td: cursor.array("mr_td")?,
            mr_config_id: cursor.array("mr_config_id")?,
            mr_owner: cursor.array("mr_owner")?,
            mr_owner_config: cursor.array("mr_owner_config")?,
            rtmr: [cursor.array("rtmr_0")?, cursor.array("rtmr_1")?, cursor.array("rtmr_2")?, cursor.array("rtmr_3")?],
            service_td_hash: cursor.array("service_td_hash")?,
            reserved: cursor.array("reserved")?,
        })
    }
}

/// `REPORTTYPE.TYPE` of a TD's report.
pub const REPORT_TYPE_TDX: u8 = 0x81;

const _: () = assert!(size_of::<ReportMac>() == ReportMac::LEN);
const _: () = assert!(offset_of!(ReportMac, version) == 2);
const _: () = assert!(offset_of!(ReportMac, cpu_svn) == 16);
const _: () = assert!(offset_of!(ReportMac, tee_tcb_info_hash) == 32);
const _: () = assert!(offset_of!(ReportMac, tee_info_hash) == 80);
const _: () = assert!(offset_of!(ReportMac, report_data) == 128);
const _: () = assert!(offset_of!(ReportMac, mac) == 224);
const _: () = assert!(size_of::<TeeTcbInfo>() == TeeTcbInfo::LEN);
const _: () = assert!(offset_of!(TeeTcbInfo, tee_tcb_svn) == 8);
const _: () = assert!(offset_of!(TeeTcbInfo, mr_seam) == 24);
const _: () = assert!(offset_of!(TeeTcbInfo, mr_signer_seam) == 72);
const _: () = assert!(offset_of!(TeeTcbInfo, seam_attributes) == 120);
const _: () = assert!(offset_of!(TeeTcbInfo, tee_tcb_svn_2) == 128);
const _: () = assert!(size_of::<TdInfo>() == TdInfo::LEN);
const _: () = assert!(offset_of!(TdInfo, xfam) == 8);
const _: () = assert!(offset_of!(TdInfo, mr_td) == 16);
const _: () = assert!(offset_of!(TdInfo, mr_config_id) == 64);
const _: () = assert!(offset_of!(TdInfo, mr_owner) == 112);
const _: () = assert!(offset_of!(TdInfo, mr_owner_config) == 160);
const _: () = assert!(offset_of!(TdInfo, rtmr) == 208);
const _: () = assert!(offset_of!(TdInfo, service_td_hash) == 400);
const _: () = assert!(size_of::<TdReport>() == TdReport::LEN);
const _: () = assert!(offset_of!(TdReport, tcb) == 256);
const _: () = assert!(offset_of!(TdReport, td) == 512);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_at_their_offsets() {
        let mut bytes = [0_u8; TdReport::LEN];
        bytes[0] = 0x81;
        bytes[2] = 1;
        bytes[16..32].fill(6);
        bytes[32..80].fill(7);
        bytes[80..128].fill(8);
        bytes[128..192].fill(1);
        bytes[224..256].fill(9);
        bytes[256 + 24..256 + 72].fill(10);
        bytes[256 + 128..256 + 144].fill(11);
        bytes[512 + 16..512 + 64].fill(2);
        bytes[512 + 64..512 + 112].fill(3);
        bytes[512 + 208 + 144..512 + 400].fill(4);
        bytes[512 + 400..512 + 448].fill(5);
        let report = TdReport::parse(&bytes).unwrap();
        assert_eq!((report.mac.report_type, report.mac.version), (0x81, 1));
        assert_eq!(report.mac.cpu_svn, [6; 16]);
        assert_eq!(report.mac.tee_tcb_info_hash, [7; 48]);
        assert_eq!(report.mac.tee_info_hash, [8; 48]);
        assert_eq!(report.mac.report_data, [1; 64]);
        assert_eq!(report.mac.mac, [9; 32]);
        assert_eq!(report.tcb.mr_seam, [10; 48]);
        assert_eq!(report.tcb.tee_tcb_svn_2, [11; 16]);
        assert_eq!(report.td.mr_td, [2; 48]);
        assert_eq!(report.td.mr_config_id, [3; 48]);
        assert_eq!(report.td.rtmr[3], [4; 48]);
        assert_eq!(report.td.service_td_hash, [5; 48]);
    }

    #[test]
    fn other_sizes_and_types_are_refused() {
        let mut bytes = [0_u8; TdReport::LEN + 1];
        assert_eq!(TdReport::parse(&bytes), Err(TdReportError::ReportType(0)));
        bytes[0] = 0x81;
        assert!(matches!(TdReport::parse(&bytes), Err(TdReportError::Read(ReadError::Trailing { .. }))));
        for len in 0..TdReport::LEN {
            assert!(matches!(TdReport::parse(&bytes[..len]), Err(TdReportError::Read(ReadError::Truncated { .. }))));
        }
    }
}
