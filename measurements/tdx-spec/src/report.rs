// SPDX-License-Identifier: Apache-2.0
//! The body of a TD quote: what the TDX module reported about a TD.
//!
//! Source: Intel TDX DCAP Quoting Library API, appendix A.3.2 "TD Quote Body Descriptor", tables "TD Quote
//! Body for TDX 1.0" (584 bytes) and "for TDX 1.5" (648 bytes), offsets compared with `sgx_report2_body_v1_5_t` of
//! `sgx_quote_5.h` in Intel's SGXDataCenterAttestationPrimitives (commit 6c1a9ab); a later `sgx_quote_5.h`,
//! `sgx_report2_body_v1_5_ex_t`, for the extended body (885 bytes).

use core::mem::offset_of;

use crate::{Cursor, ReadError, TdAttributes, Xfam};

/// Body of a quote for TDX 1.0, 584 bytes. All fields are as reported; none is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct TdReport10 {
    /// Security version numbers of the TDX module and its loader.
    pub tee_tcb_svn: [u8; 16],
    /// Measurement of the TDX module (SHA-384).
    pub mr_seam: [u8; 48],
    /// Signer of the TDX module; zero for Intel's.
    pub mr_signer_seam: [u8; 48],
    /// Attributes of the TDX module; zero for TDX 1.0 and 1.5.
    pub seam_attributes: [u8; 8],
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
    /// Run-time measurement register 0.
    pub rtmr_0: [u8; 48],
    /// Run-time measurement register 1.
    pub rtmr_1: [u8; 48],
    /// Run-time measurement register 2.
    pub rtmr_2: [u8; 48],
    /// Run-time measurement register 3.
    pub rtmr_3: [u8; 48],
    /// What the TD asked to have reported.
    pub report_data: [u8; 64],
}

/// Body of a quote for TDX 1.5, 648 bytes: that of 1.0 and two fields more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct TdReport15 {
    /// The fields of TDX 1.0.
    pub base: TdReport10,
    /// Security version numbers of the TDX module that is loaded now (after an update without reboot it
    /// differs from `base.tee_tcb_svn`, which dates from the TD's start).
    pub tee_tcb_svn_2: [u8; 16],
    /// Measurement of the service TDs that were bound at the time; zero for none.
    pub mr_service_td: [u8; 48],
}

/// Extended body of a quote for TDX 1.5, 885 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct TdReport15Ex {
    /// The fields of TDX 1.5.
    pub base: TdReport15,
    /// Index of the reported VM; 0 for an unpartitioned TD.
    pub vm_id: [u8; 1],
    /// Identity of this run of the TD.
    pub td_id: [u8; 32],
    /// Hash over the devices' information (TDX Connect); zero for none.
    pub device_info: [u8; 48],
    /// Hash over the service TDs bound when the TD was created; zero for none.
    pub initial_service_td_hash: [u8; 48],
    /// Attributes of that service TD.
    pub initial_service_td_attributes: [u8; 8],
    /// The processor's security versions when the TD was created.
    pub initial_cpu_svn: [u8; 16],
    /// The module's security versions when the TD was created.
    pub initial_tee_tcb_svn: [u8; 16],
    /// The platform's family-model-stepping at that time.
    pub initial_fmspc: [u8; 12],
    /// Hash over the service TDs that are bound now; zero for none.
    pub current_service_td_hash: [u8; 48],
    /// Attributes of that service TD.
    pub current_service_td_attributes: [u8; 8],
}

impl TdReport10 {
    /// Size in bytes.
    pub const LEN: usize = 584;

    /// Reads the body at the cursor.
    ///
    /// # Errors
    /// [`ReadError::Truncated`] names the field.
    pub fn read(cursor: &mut Cursor<'_>) -> Result<Self, ReadError> {
        Ok(Self {
            tee_tcb_svn: cursor.array("tee_tcb_svn")?,
            mr_seam: cursor.array("mr_seam")?,
            mr_signer_seam: cursor.array("mr_signer_seam")?,
            seam_attributes: cursor.array("seam_attributes")?,
            td_attributes: TdAttributes::from_bytes(cursor.array("td_attributes")?),
            xfam: Xfam::from_bytes(cursor.array("xfam")?),
            mr_td: cursor.array("mr_td")?,
            mr_config_id: cursor.array("mr_config_id")?,
            mr_owner: cursor.array("mr_owner")?,
            mr_owner_config: cursor.array("mr_owner_config")?,
            rtmr_0: cursor.array("rtmr_0")?,
            rtmr_1: cursor.array("rtmr_1")?,
            rtmr_2: cursor.array("rtmr_2")?,
            rtmr_3: cursor.array("rtmr_3")?,
            report_data: cursor.array("report_data")?,
        })
    }
}

impl TdReport15 {
    /// Size in bytes.
    pub const LEN: usize = 648;

    /// Reads the body at the cursor.
    ///
    /// # Errors
    /// [`ReadError::Truncated`] names the field.
    pub fn read(cursor: &mut Cursor<'_>) -> Result<Self, ReadError> {
        Ok(Self {
            base: TdReport10::read(cursor)?,
            tee_tcb_svn_2: cursor.array("tee_tcb_svn_2")?,
            mr_service_td: cursor.array("mr_service_td")?,
        })
    }
}

impl TdReport15Ex {
    /// Size in bytes.
    pub const LEN: usize = 885;

    /// Reads the body at the cursor.
    ///
    /// # Errors
    /// [`ReadError::Truncated`] names the field.
    pub fn read(cursor: &mut Cursor<'_>) -> Result<Self, ReadError> {
        Ok(Self {
            base: TdReport15::read(cursor)?,
            vm_id: cursor.array("vm_id")?,
            td_id: cursor.array("td_id")?,
            device_info: cursor.array("device_info")?,
            initial_service_td_hash: cursor.array("initial_service_td_hash")?,
            initial_service_td_attributes: cursor.array("initial_service_td_attributes")?,
            initial_cpu_svn: cursor.array("initial_cpu_svn")?,
            initial_tee_tcb_svn: cursor.array("initial_tee_tcb_svn")?,
            initial_fmspc: cursor.array("initial_fmspc")?,
            current_service_td_hash: cursor.array("current_service_td_hash")?,
            current_service_td_attributes: cursor.array("current_service_td_attributes")?,
        })
    }
}

const _: () = assert!(size_of::<TdReport10>() == TdReport10::LEN);
const _: () = assert!(offset_of!(TdReport10, mr_seam) == 16);
const _: () = assert!(offset_of!(TdReport10, mr_signer_seam) == 64);
const _: () = assert!(offset_of!(TdReport10, seam_attributes) == 112);
const _: () = assert!(offset_of!(TdReport10, td_attributes) == 120);
const _: () = assert!(offset_of!(TdReport10, xfam) == 128);
const _: () = assert!(offset_of!(TdReport10, mr_td) == 136);
const _: () = assert!(offset_of!(TdReport10, mr_config_id) == 184);
const _: () = assert!(offset_of!(TdReport10, mr_owner) == 232);
const _: () = assert!(offset_of!(TdReport10, mr_owner_config) == 280);
const _: () = assert!(offset_of!(TdReport10, rtmr_0) == 328);
const _: () = assert!(offset_of!(TdReport10, rtmr_1) == 376);
const _: () = assert!(offset_of!(TdReport10, rtmr_2) == 424);
const _: () = assert!(offset_of!(TdReport10, rtmr_3) == 472);
const _: () = assert!(offset_of!(TdReport10, report_data) == 520);
const _: () = assert!(size_of::<TdReport15>() == TdReport15::LEN);
const _: () = assert!(offset_of!(TdReport15, tee_tcb_svn_2) == 584);
const _: () = assert!(offset_of!(TdReport15, mr_service_td) == 600);
const _: () = assert!(size_of::<TdReport15Ex>() == TdReport15Ex::LEN);
const _: () = assert!(offset_of!(TdReport15Ex, vm_id) == 648);
const _: () = assert!(offset_of!(TdReport15Ex, td_id) == 649);
const _: () = assert!(offset_of!(TdReport15Ex, device_info) == 681);
const _: () = assert!(offset_of!(TdReport15Ex, initial_service_td_hash) == 729);
const _: () = assert!(offset_of!(TdReport15Ex, initial_service_td_attributes) == 777);
const _: () = assert!(offset_of!(TdReport15Ex, initial_cpu_svn) == 785);
const _: () = assert!(offset_of!(TdReport15Ex, initial_tee_tcb_svn) == 801);
const _: () = assert!(offset_of!(TdReport15Ex, initial_fmspc) == 817);
const _: () = assert!(offset_of!(TdReport15Ex, current_service_td_hash) == 829);
const _: () = assert!(offset_of!(TdReport15Ex, current_service_td_attributes) == 877);
