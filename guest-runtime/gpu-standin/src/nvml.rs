// SPDX-License-Identifier: Apache-2.0
//! The symbols of libnvidia-ml that the collector uses (nvml.h).
//!
//! # Safety
//! Of every function: pointers are those that the header asks for. A device's handle is its index plus one.

use std::{
    ffi::{c_char, c_int, c_uint, c_void},
    fs::OpenOptions,
    io::Write as _,
    slice,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{Device, Script, fill};

/// Sessions that are open.
static SESSIONS: AtomicU32 = AtomicU32::new(0);
/// What was set last.
static READY: AtomicU32 = AtomicU32::new(0);

const UNINITIALIZED: c_int = 1;
const INVALID_ARGUMENT: c_int = 2;
/// No code of the header.
const DONE_WHAT_IT_MAY_NOT: c_int = 12345;

fn answer(call: &str, device: Option<usize>, then: impl FnOnce(&Script) -> c_int) -> c_int {
    if SESSIONS.load(Ordering::SeqCst) == 0 {
        return UNINITIALIZED;
    }
    Script::read().map_or(UNINITIALIZED, |script| script.code(call, device).unwrap_or_else(|| then(&script)))
}

fn with_device(call: &str, handle: *mut c_void, then: impl FnOnce(&Script, &Device) -> c_int) -> c_int {
    let index = (handle as usize).wrapping_sub(1);
    answer(call, Some(index), |script| script.gpus.get(index).map_or(INVALID_ARGUMENT, |device| then(script, device)))
}

/// As nvml.h.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> c_int {
    let code = Script::read().map_or(UNINITIALIZED, |script| script.code("nvmlInit_v2", None).unwrap_or(0));
    if code == 0 {
        SESSIONS.fetch_add(1, Ordering::SeqCst);
    }
    code
}

/// As nvml.h.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> c_int {
    SESSIONS.fetch_sub(1, Ordering::SeqCst);
    0
}

/// As nvml.h.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> c_int {
    answer("nvmlSystemGetDriverVersion", None, |script| {
        if script.tries.is_some_and(crate::Attempt::works) {
            return DONE_WHAT_IT_MAY_NOT;
        }
        // SAFETY: the caller's buffer has that length.
        let buffer = unsafe { slice::from_raw_parts_mut(version.cast::<u8>(), length as usize) };
        fill(buffer, script.driver_version.as_bytes());
        0
    })
}

/// As nvml.h.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetConfComputeState(state: *mut [c_uint; 3]) -> c_int {
    answer("nvmlSystemGetConfComputeState", None, |script| {
        let [feature, dev_tools] = script.state;
        // SAFETY: three numbers: environment, ccFeature, devToolsMode.
        unsafe { *state = [2, feature, dev_tools] };
        0
    })
}

/// As nvml.h.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetConfComputeSettings(settings: *mut [c_uint; 5]) -> c_int {
    answer("nvmlSystemGetConfComputeSettings", None, |script| {
        let [feature, dev_tools, multi_gpu] = script.settings;
        // SAFETY: five numbers: version, environment, ccFeature, devToolsMode, multiGpuMode.
        let found = unsafe { &mut *settings };
        let [version, ..] = *found;
        if version != 0x0100_0014 {
            return 25;
        }
        *found = [version, 2, feature, dev_tools, multi_gpu];
        0
    })
}

/// As nvml.h.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> c_int {
    answer("nvmlDeviceGetCount_v2", None, |script| {
        // SAFETY: a writable number.
        unsafe { *count = script.count.unwrap_or(u32::try_from(script.gpus.len()).unwrap_or(u32::MAX)) };
        0
    })
}

/// As nvml.h.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut *mut c_void) -> c_int {
    answer("nvmlDeviceGetHandleByIndex_v2", Some(index as usize), |_| {
        // SAFETY: a writable pointer.
        unsafe { *device = (index as usize + 1) as *mut c_void };
        0
    })
}

/// As nvml.h.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(device: *mut c_void, uuid: *mut c_char, length: c_uint) -> c_int {
    with_device("nvmlDeviceGetUUID", device, |_, found| {
        // SAFETY: the caller's buffer has that length.
        let buffer = unsafe { slice::from_raw_parts_mut(uuid.cast::<u8>(), length as usize) };
        fill(buffer, found.uuid.as_bytes());
        0
    })
}

/// As nvml.h.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetArchitecture(device: *mut c_void, architecture: *mut c_uint) -> c_int {
    with_device("nvmlDeviceGetArchitecture", device, |_, found| {
        // SAFETY: a writable number.
        unsafe { *architecture = found.architecture };
        0
    })
}

/// `nvmlConfComputeGpuAttestationReport_t`.
#[repr(C)]
#[allow(missing_debug_implementations, reason = "a buffer")]
pub struct AttestationReport {
    present: c_uint,
    size: c_uint,
    cec_size: c_uint,
    nonce: [u8; 0x20],
    report: [u8; 0x2000],
    cec_report: [u8; 0x1000],
}

/// As nvml.h.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetConfComputeGpuAttestationReport(
    device: *mut c_void,
    report: *mut AttestationReport,
) -> c_int {
    with_device("nvmlDeviceGetConfComputeGpuAttestationReport", device, |script, found| {
        // SAFETY: the caller's structure.
        let to = unsafe { &mut *report };
        if script.nonce.is_some_and(|nonce| nonce != to.nonce) {
            return INVALID_ARGUMENT;
        }
        fill(&mut to.report, &found.report);
        to.size = found.report_size.unwrap_or(u32::try_from(found.report.len()).unwrap_or(u32::MAX));
        0
    })
}

/// `nvmlConfComputeGpuCertificate_t`.
#[repr(C)]
#[allow(missing_debug_implementations, reason = "a buffer")]
pub struct Certificate {
    session_size: c_uint,
    size: c_uint,
    session_chain: [u8; 0x1000],
    chain: [u8; 0x1400],
}

/// As nvml.h.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetConfComputeGpuCertificate(
    device: *mut c_void,
    certificate: *mut Certificate,
) -> c_int {
    with_device("nvmlDeviceGetConfComputeGpuCertificate", device, |_, found| {
        // SAFETY: the caller's structure.
        let to = unsafe { &mut *certificate };
        fill(&mut to.chain, &found.chain);
        to.size = found.chain_size.unwrap_or(u32::try_from(found.chain.len()).unwrap_or(u32::MAX));
        0
    })
}

/// As nvml.h.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetConfComputeGpusReadyState(ready: *mut c_uint) -> c_int {
    answer("nvmlSystemGetConfComputeGpusReadyState", None, |script| {
        // SAFETY: a writable number.
        unsafe { *ready = READY.load(Ordering::SeqCst).min(script.ready_state) };
        0
    })
}

/// As nvml.h.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemSetConfComputeGpusReadyState(ready: c_uint) -> c_int {
    answer("nvmlSystemSetConfComputeGpusReadyState", None, |script| {
        READY.store(ready, Ordering::SeqCst);
        let Some(path) = &script.ready else { return 0 };
        // The process under test may not create files: the test made this one.
        let line = OpenOptions::new().append(true).open(path).and_then(|mut file| writeln!(file, "{ready}"));
        if line.is_ok() { 0 } else { 999 }
    })
}
