// SPDX-License-Identifier: Apache-2.0
//! The kernel's TDX guest device.
#![allow(unsafe_code, reason = "one ioctl without a safe wrapper")]

use std::{fs::File, os::fd::AsRawFd as _};

use crate::SysError;

/// Asks the TDX module, through `/dev/tdx_guest`, for a report about this TD over `report_data`
/// (TDG.MR.REPORT, subtype 0). The report's form is `tdx_spec::TdReport`.
///
/// # Errors
/// [`SysError`].
pub fn report(device: &File, report_data: &[u8; 64]) -> Result<[u8; 1024], SysError> {
    let mut request = ReportRequest { report_data: *report_data, td_report: [0; 1024] };
    // SAFETY: the structure is the one of linux/tdx-guest.h, and the kernel writes within it.
    unsafe { get_report0(device.as_raw_fd(), &raw mut request) }.map_err(SysError::when("get a TD report"))?;
    Ok(request.td_report)
}

/// The number of the request that [`report`] makes, for a filter.
pub const GET_REPORT0: u32 = 0xc440_5401;

const _: () =
    assert!(nix::request_code_readwrite!(b'T', 1, size_of::<ReportRequest>()) == GET_REPORT0 as libc::c_ulong);

/// `struct tdx_report_req` of `linux/tdx-guest.h`.
#[repr(C)]
struct ReportRequest {
    report_data: [u8; 64],
    td_report: [u8; 1024],
}

const _: () = assert!(size_of::<ReportRequest>() == 1088);

nix::ioctl_readwrite!(
    /// `TDX_CMD_GET_REPORT0`: _IOWR('T', 1, struct tdx_report_req).
    get_report0,
    b'T',
    1,
    ReportRequest
);
