// SPDX-License-Identifier: Apache-2.0
//! TDREPORT: what the TDX module gives a TD about itself, before it becomes a quote.
//!
//! Source: Intel TDX Module v1.5 ABI Specification (348551-004US), "TDREPORT_STRUCT", "REPORTMACSTRUCT",
//! "TEE_TCB_INFO" and "TDINFO_STRUCT". The MAC is checked only by the processor (SEAMVERIFYREPORT): read
//! from the module by the TD itself a report is true; handed over by anybody else it proves nothing.

use crate::{Cursor, ReadError, TdAttributes, Xfam};

/// A TD report, 1,024 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TdReport {
    /// Report type; 0x81 for a TD.
    pub report_type: u8,
    /// Version of the report; 0, or 1 when service TDs are bound.
    pub version: u8,
    /// What the TD asked to have reported.
    pub report_data: [u8; 64],
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
    /// Hash over the bound service TDs; zero for none.
    pub service_td_hash: [u8; 48],
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
        // REPORTMACSTRUCT, 256 bytes: type, subtype, version, reserved; then hashes, data and MAC.
        let [report_type, _subtype, version, _reserved] = cursor.array("report_type")?;
        if report_type != REPORT_TYPE_TDX {
            return Err(TdReportError::ReportType(report_type));
        }
        cursor.skip("reserved", 12)?;
        cursor.skip("cpu_svn", 16)?;
        cursor.skip("tee_tcb_info_hash", 48)?;
        cursor.skip("tee_info_hash", 48)?;
        let report_data = cursor.array("report_data")?;
        cursor.skip("reserved", 32)?;
        cursor.skip("mac", 32)?;
        debug_assert_eq!(cursor.offset(), TEE_TCB_INFO_OFFSET);
        cursor.skip("tee_tcb_info", 239)?;
        cursor.skip("reserved", 17)?;
        debug_assert_eq!(cursor.offset(), TDINFO_OFFSET);
        let report = Self {
            report_type,
            version,
            report_data,
            td_attributes: TdAttributes::from_bytes(cursor.array("attributes")?),
            xfam: Xfam::from_bytes(cursor.array("xfam")?),
            mr_td: cursor.array("mr_td")?,
            mr_config_id: cursor.array("mr_config_id")?,
            mr_owner: cursor.array("mr_owner")?,
            mr_owner_config: cursor.array("mr_owner_config")?,
            rtmr: [cursor.array("rtmr_0")?, cursor.array("rtmr_1")?, cursor.array("rtmr_2")?, cursor.array("rtmr_3")?],
            service_td_hash: cursor.array("service_td_hash")?,
        };
        cursor.skip("reserved", 64)?;
        cursor.finish()?;
        Ok(report)
    }
}

const REPORT_TYPE_TDX: u8 = 0x81;
const TEE_TCB_INFO_OFFSET: usize = 256;
const TDINFO_OFFSET: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_at_their_offsets() {
        let mut bytes = [0_u8; TdReport::LEN];
        bytes[0] = 0x81;
        bytes[128..192].fill(1);
        bytes[512 + 16..512 + 64].fill(2);
        bytes[512 + 64..512 + 112].fill(3);
        bytes[512 + 208 + 144..512 + 400].fill(4);
        bytes[512 + 400..512 + 448].fill(5);
        let report = TdReport::parse(&bytes).unwrap();
        assert_eq!(report.report_data, [1; 64]);
        assert_eq!(report.mr_td, [2; 48]);
        assert_eq!(report.mr_config_id, [3; 48]);
        assert_eq!(report.rtmr[3], [4; 48]);
        assert_eq!(report.service_td_hash, [5; 48]);
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
