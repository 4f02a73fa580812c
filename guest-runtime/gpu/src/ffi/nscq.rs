// SPDX-License-Identifier: Apache-2.0
//! libnvidia-nscq, by the attestation part of its interface that NVIDIA publishes in nvtrust (nscq_attestation.h, API 2.0.0).
//!
//! The library calls back once for each device that a path names, with values by copy. A callback here only copies into the
//! caller's list, with a cap.
#![allow(unsafe_code, reason = "a C library that is loaded at run time and calls back")]

use std::{
    ffi::{CString, c_char, c_int, c_void},
    ptr,
};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::{LibraryError, RawEvidence, part, text};

/// The library, loaded.
pub(crate) struct Nscq {
    table: Table,
    _library: Library,
}

/// An open session with all switches mounted.
pub(crate) struct Session<'a> {
    table: &'a Table,
    session: *mut c_void,
}

/// `nscq_fn_t`: every callback goes by this type.
type AnyFunction = unsafe extern "C" fn();

struct Table {
    create: unsafe extern "C" fn(u32) -> SessionResult,
    destroy: unsafe extern "C" fn(*mut c_void),
    observe: unsafe extern "C" fn(*mut c_void, *const c_char, AnyFunction, *mut c_void, u32) -> i8,
    set_input: unsafe extern "C" fn(*mut c_void, u32, *mut c_void, u32) -> i8,
    label: unsafe extern "C" fn(*const Uuid, *mut Label, u32) -> i8,
}

impl Nscq {
    /// # Errors
    /// [`LibraryError::Missing`] in images that have no such library.
    pub(crate) fn load() -> Result<Self, LibraryError> {
        // SAFETY: loading runs the library's initialisers; it lies on the verified root, and no thread runs yet.
        let library = unsafe { Library::open(Some(NAME), RTLD_NOW | RTLD_LOCAL) };
        let library = library.map_err(|error| LibraryError::Missing { name: NAME, why: error.to_string() })?;
        let missing = |symbol| move |_| LibraryError::Symbol { library: NAME, symbol };
        // SAFETY: the types are those of nscq_attestation.h.
        let table = unsafe {
            Table {
                create: *library.get(b"nscq_session_create\0").map_err(missing("nscq_session_create"))?,
                destroy: *library.get(b"nscq_session_destroy\0").map_err(missing("nscq_session_destroy"))?,
                observe: *library.get(b"nscq_session_path_observe\0").map_err(missing("nscq_session_path_observe"))?,
                set_input: *library.get(b"nscq_session_set_input\0").map_err(missing("nscq_session_set_input"))?,
                label: *library.get(b"nscq_uuid_to_label\0").map_err(missing("nscq_uuid_to_label"))?,
            }
        };
        Ok(Self { table, _library: library })
    }

    pub(crate) fn session(&self) -> Result<Session<'_>, LibraryError> {
        // SAFETY: takes a flag.
        let SessionResult { rc, session } = unsafe { (self.table.create)(MOUNT_DEVICES) };
        done("nscq_session_create", rc)?;
        if session.is_null() {
            return Err(LibraryError::Limit { call: "nscq_session_create", field: "session", found: 0 });
        }
        Ok(Session { table: &self.table, session })
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // SAFETY: made by the library, ended once.
        unsafe { (self.table.destroy)(self.session) };
    }
}

impl Session<'_> {
    /// The labels of all switches (`SWX-…`), at most `cap`.
    pub(crate) fn switches(&self, cap: usize) -> Result<Vec<String>, LibraryError> {
        let mut found = Seen::<Uuid>::new(cap);
        // SAFETY: a callback that gets a pointer to a UUID is what this path takes; the list outlives the call.
        unsafe { self.observe(UUIDS, ON_UUID, &mut found)? };
        found.values(UUIDS)?.iter().map(|uuid| self.label(uuid)).collect()
    }

    /// The report of one switch for this nonce, with its certificates.
    pub(crate) fn evidence(&self, label: &str, nonce: &[u8; 32]) -> Result<RawEvidence, LibraryError> {
        let mut input = *nonce;
        // SAFETY: a writable buffer of the length that is said, which the library copies.
        let rc = unsafe { (self.table.set_input)(self.session, 0, input.as_mut_ptr().cast(), NONCE_LEN) };
        done("nscq_session_set_input", rc)?;
        let mut reports = Seen::<Report>::new(1);
        // SAFETY: a callback that gets a report by copy is what this path takes; the list outlives the call.
        unsafe { self.observe(&format!("/{label}/config/attestation_report"), ON_REPORT, &mut reports)? };
        let mut chains = Seen::<Certificates>::new(1);
        // SAFETY: as above, with certificates.
        unsafe { self.observe(&format!("/{label}/config/certificate"), ON_CERTIFICATES, &mut chains)? };
        let (report, chain) = (reports.only(OBSERVE)?, chains.only(OBSERVE)?);
        Ok(RawEvidence {
            report: part(OBSERVE, "report_size", &report.report, report.size)?,
            chain: part(OBSERVE, "cert_chain_size", &chain.chain, chain.size)?,
        })
    }

    fn label(&self, uuid: &Uuid) -> Result<String, LibraryError> {
        let (call, mut label) = ("nscq_uuid_to_label", Label { data: [0; 64] });
        // SAFETY: a UUID and a writable label of the library's own types.
        done(call, unsafe { (self.table.label)(uuid, &raw mut label, 0) })?;
        text(call, "label", &label.data)
    }

    /// # Safety
    /// The path must give the callback values of type `T`, as `callback` takes them.
    unsafe fn observe<T, F: Callback>(&self, path: &str, callback: F, seen: &mut Seen<T>) -> Result<(), LibraryError> {
        let malformed = |_| LibraryError::Limit { call: OBSERVE, field: "path", found: 0 };
        let path = CString::new(path).map_err(malformed)?;
        let user = ptr::from_mut(seen).cast::<c_void>();
        // SAFETY: the callback is only cast back to its own type by the library (nscq_fn_t); `seen` lives until it returns.
        let rc = unsafe { (self.table.observe)(self.session, path.as_ptr(), callback.erased(), user, 0) };
        done(OBSERVE, rc)?;
        done(OBSERVE, seen.rc)
    }
}

/// What callbacks have brought.
struct Seen<T> {
    values: Vec<T>,
    cap: usize,
    more: bool,
    /// The first code that is not success.
    rc: i8,
}

impl<T> Seen<T> {
    const fn new(cap: usize) -> Self {
        Self { values: Vec::new(), cap, more: false, rc: 0 }
    }

    fn take(&mut self, rc: i8, value: T) {
        if rc != 0 {
            self.rc = if self.rc == 0 { rc } else { self.rc };
        } else if self.values.len() < self.cap {
            self.values.push(value);
        } else {
            self.more = true;
        }
    }

    fn values(self, field: &'static str) -> Result<Vec<T>, LibraryError> {
        let found = u64::try_from(self.cap).unwrap_or(u64::MAX).saturating_add(1);
        if self.more { Err(LibraryError::Limit { call: OBSERVE, field, found }) } else { Ok(self.values) }
    }

    fn only(self, field: &'static str) -> Result<T, LibraryError> {
        let none = LibraryError::Limit { call: OBSERVE, field, found: 0 };
        self.values(field)?.pop().ok_or(none)
    }
}

/// A callback that can be handed over as `nscq_fn_t`.
trait Callback {
    fn erased(self) -> AnyFunction;
}

type OnUuid = unsafe extern "C" fn(*const Uuid, i8, *const Uuid, *mut c_void);
type OnReport = unsafe extern "C" fn(*const Uuid, i8, Report, *mut c_void);
type OnCertificates = unsafe extern "C" fn(*const Uuid, i8, Certificates, *mut c_void);

macro_rules! callbacks {
    ($($function:ty),*) => {
        $(impl Callback for $function {
            fn erased(self) -> AnyFunction {
                // SAFETY: function pointers have one size; the library casts it back before it calls.
                unsafe { std::mem::transmute::<$function, AnyFunction>(self) }
            }
        })*
    };
}

callbacks!(OnUuid, OnReport, OnCertificates);

const ON_UUID: OnUuid = see_uuid;
const ON_REPORT: OnReport = see_report;
const ON_CERTIFICATES: OnCertificates = see_certificates;

/// # Safety
/// `user` is a `Seen<Uuid>`; `uuid` is null or readable.
unsafe extern "C" fn see_uuid(_: *const Uuid, rc: i8, uuid: *const Uuid, user: *mut c_void) {
    // SAFETY: by this function's contract.
    let (seen, uuid) = unsafe { (user.cast::<Seen<Uuid>>().as_mut(), uuid.as_ref()) };
    if let Some(seen) = seen {
        match uuid {
            Some(uuid) => seen.take(rc, *uuid),
            None => seen.take(if rc == 0 { UNSPECIFIED } else { rc }, Uuid { bytes: [0; 16] }),
        }
    }
}

/// # Safety
/// `user` is a `Seen<Report>`.
unsafe extern "C" fn see_report(_: *const Uuid, rc: i8, report: Report, user: *mut c_void) {
    // SAFETY: by this function's contract.
    if let Some(seen) = unsafe { user.cast::<Seen<Report>>().as_mut() } {
        seen.take(rc, report);
    }
}

/// # Safety
/// `user` is a `Seen<Certificates>`.
unsafe extern "C" fn see_certificates(_: *const Uuid, rc: i8, chain: Certificates, user: *mut c_void) {
    // SAFETY: by this function's contract.
    if let Some(seen) = unsafe { user.cast::<Seen<Certificates>>().as_mut() } {
        seen.take(rc, chain);
    }
}

fn done(call: &'static str, rc: i8) -> Result<(), LibraryError> {
    if rc == 0 { Ok(()) } else { Err(LibraryError::Call { call, code: c_int::from(rc) }) }
}

/// `nscq_session_result_t`.
#[repr(C)]
struct SessionResult {
    rc: i8,
    session: *mut c_void,
}

/// `nscq_uuid_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Uuid {
    bytes: [u8; 16],
}

/// `nscq_label_t`.
#[repr(C)]
struct Label {
    data: [u8; 64],
}

/// `nscq_attestation_report_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Report {
    size: u32,
    report: [u8; 0x2000],
}

/// `nscq_attestation_certificate_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Certificates {
    chain: [u8; 0x1400],
    size: u32,
}

const NAME: &str = "libnvidia-nscq.so.2";
const OBSERVE: &str = "nscq_session_path_observe";
const UUIDS: &str = "/drv/nvswitch/{device}/uuid";
/// `NSCQ_SESSION_CREATE_MOUNT_DEVICES`.
const MOUNT_DEVICES: u32 = 1;
/// `NSCQ_ATTESTATION_REPORT_NONCE_SIZE`.
const NONCE_LEN: u32 = 0x20;
/// `NSCQ_RC_ERROR_UNSPECIFIED`.
const UNSPECIFIED: i8 = -128;

const _: () = assert!(size_of::<SessionResult>() == 16);
const _: () = assert!(size_of::<Report>() == 4 + 0x2000);
const _: () = assert!(size_of::<Certificates>() == 0x1400 + 4);
