// SPDX-License-Identifier: Apache-2.0
//! The symbols of libnvidia-nscq that the collector uses (nscq_attestation.h).
//!
//! # Safety
//! Of every function: pointers are those that the header asks for.

use std::{
    ffi::{CStr, c_char, c_void},
    mem, slice,
    sync::Mutex,
};

use crate::{Script, fill};

/// What was set as input last.
static INPUT: Mutex<Vec<u8>> = Mutex::new(Vec::new());

const INVALID_UUID: i8 = -2;
const NOT_IMPLEMENTED: i8 = -1;

/// `nscq_session_result_t`.
#[repr(C)]
#[derive(Debug)]
pub struct SessionResult {
    rc: i8,
    session: *mut c_void,
}

/// `nscq_uuid_t`.
#[repr(C)]
#[derive(Debug)]
pub struct Uuid {
    bytes: [u8; 16],
}

#[repr(C)]
struct Report {
    size: u32,
    report: [u8; 0x2000],
}

#[repr(C)]
struct Certificates {
    chain: [u8; 0x1400],
    size: u32,
}

fn code(script: &Script, call: &str, device: Option<usize>) -> Option<i8> {
    script.code(call, device).map(|code| i8::try_from(code).unwrap_or(i8::MIN))
}

/// As nscq_attestation.h.
#[unsafe(no_mangle)]
pub extern "C" fn nscq_session_create(_flags: u32) -> SessionResult {
    let script = Script::read();
    let rc = script.map_or(NOT_IMPLEMENTED, |script| code(&script, "nscq_session_create", None).unwrap_or(0));
    SessionResult { rc, session: std::ptr::dangling_mut::<u8>().cast() }
}

/// As nscq_attestation.h.
#[unsafe(no_mangle)]
pub extern "C" fn nscq_session_destroy(_session: *mut c_void) {}

/// As nscq_attestation.h.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nscq_session_set_input(_: *mut c_void, _: u32, input: *mut c_void, length: u32) -> i8 {
    // SAFETY: the caller's buffer has that length.
    let bytes = unsafe { slice::from_raw_parts(input.cast::<u8>(), length as usize) };
    if let Ok(mut input) = INPUT.lock() {
        *input = bytes.to_vec();
    }
    0
}

/// As nscq_attestation.h: the bytes of a UUID are here the first of its text.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nscq_uuid_to_label(uuid: *const Uuid, label: *mut [u8; 64], _flags: u32) -> i8 {
    // SAFETY: the caller's structures.
    unsafe { fill(&mut *label, &(*uuid).bytes) };
    0
}

/// As nscq_attestation.h.
///
/// # Safety
/// See the module; `callback` is of the type that the path asks for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nscq_session_path_observe(
    _session: *mut c_void,
    path: *const c_char,
    callback: unsafe extern "C" fn(),
    user: *mut c_void,
    _flags: u32,
) -> i8 {
    // SAFETY: the caller's text.
    let path = unsafe { CStr::from_ptr(path) }.to_str().unwrap_or_default();
    let Some(script) = Script::read() else { return NOT_IMPLEMENTED };
    if path == "/drv/nvswitch/{device}/uuid" {
        // SAFETY: what this path calls back.
        let callback: unsafe extern "C" fn(*const Uuid, i8, *const Uuid, *mut c_void) =
            unsafe { mem::transmute(callback) };
        for switch in &script.switches {
            let mut uuid = Uuid { bytes: [0; 16] };
            fill(&mut uuid.bytes, switch.uuid.as_bytes());
            // SAFETY: the UUID lives until the call returns.
            unsafe { callback(&raw const uuid, 0, &raw const uuid, user) };
        }
        return code(&script, path, None).unwrap_or(0);
    }
    let parts: Vec<&str> = path.split('/').collect();
    let ["", label, "config", what] = parts.as_slice() else { return NOT_IMPLEMENTED };
    let index = script.switches.iter().position(|switch| switch.uuid == *label);
    let Some((index, switch)) = index.and_then(|index| Some((index, script.switches.get(index)?))) else {
        return INVALID_UUID;
    };
    let rc = code(&script, what, Some(index)).unwrap_or(0);
    let size = |said: Option<u32>, bytes: &[u8]| said.unwrap_or(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    match *what {
        "attestation_report" => {
            let asked = INPUT.lock().map(|input| input.clone()).unwrap_or_default();
            if script.nonce.is_some_and(|nonce| nonce != asked.as_slice()) {
                return NOT_IMPLEMENTED;
            }
            let mut report = Report { size: size(switch.report_size, &switch.report), report: [0; 0x2000] };
            fill(&mut report.report, &switch.report);
            // SAFETY: what this path calls back.
            let callback: unsafe extern "C" fn(*const Uuid, i8, Report, *mut c_void) =
                unsafe { mem::transmute(callback) };
            // SAFETY: by copy.
            unsafe { callback(std::ptr::null(), rc, report, user) };
            0
        }
        "certificate" => {
            let mut chain = Certificates { chain: [0; 0x1400], size: size(switch.chain_size, &switch.chain) };
            fill(&mut chain.chain, &switch.chain);
            // SAFETY: what this path calls back.
            let callback: unsafe extern "C" fn(*const Uuid, i8, Certificates, *mut c_void) =
                unsafe { mem::transmute(callback) };
            // SAFETY: by copy.
            unsafe { callback(std::ptr::null(), rc, chain, user) };
            0
        }
        _ => NOT_IMPLEMENTED,
    }
}
