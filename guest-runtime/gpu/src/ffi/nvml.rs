// SPDX-License-Identifier: Apache-2.0
//! libnvidia-ml, by NVIDIA's public header nvml.h (CUDA 12.4, NVML 550): layouts and constants are frozen below.
#![allow(unsafe_code, reason = "a C library that is loaded at run time")]

use std::{
    ffi::{c_char, c_int, c_uint, c_void},
    ptr,
};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::{LibraryError, RawEvidence, part, text};

/// The library, loaded; initialised by [`Nvml::session`].
pub(crate) struct Nvml {
    table: Table,
    /// Never unloaded before the last call: the pointers above lead into it.
    _library: Library,
}

/// An initialised library. Ends with it.
pub(crate) struct Session<'a>(&'a Table);

/// One GPU of a session.
#[derive(Clone, Copy)]
pub(crate) struct Device<'a> {
    table: &'a Table,
    handle: *mut c_void,
}

/// What the driver says of confidential mode: the worse of its two calls counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Modes {
    pub(crate) confidential: bool,
    pub(crate) dev_tools: bool,
    pub(crate) protected_pcie: bool,
}

macro_rules! table {
    ($($field:ident $symbol:literal: fn($($argument:ty),*);)*) => {
        /// The functions in use. Each gives an `nvmlReturn_t`.
        struct Table {
            $($field: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl Table {
            fn of(library: &Library) -> Result<Self, LibraryError> {
                Ok(Self {
                    $($field: {
                        // SAFETY: the type is that of nvml.h, whose functions keep theirs under a name: what changes gets
                        // another name (`_v2`).
                        let found = unsafe { library.get(concat!($symbol, "\0").as_bytes()) };
                        *found.map_err(|_| LibraryError::Symbol { library: NAME, symbol: $symbol })?
                    },)*
                })
            }
        }
    };
}

table! {
    init "nvmlInit_v2": fn();
    shutdown "nvmlShutdown": fn();
    driver_version "nvmlSystemGetDriverVersion": fn(*mut c_char, c_uint);
    state "nvmlSystemGetConfComputeState": fn(*mut SystemState);
    settings "nvmlSystemGetConfComputeSettings": fn(*mut SystemSettings);
    count "nvmlDeviceGetCount_v2": fn(*mut c_uint);
    by_index "nvmlDeviceGetHandleByIndex_v2": fn(c_uint, *mut *mut c_void);
    uuid "nvmlDeviceGetUUID": fn(*mut c_void, *mut c_char, c_uint);
    architecture "nvmlDeviceGetArchitecture": fn(*mut c_void, *mut c_uint);
    report "nvmlDeviceGetConfComputeGpuAttestationReport": fn(*mut c_void, *mut AttestationReport);
    certificate "nvmlDeviceGetConfComputeGpuCertificate": fn(*mut c_void, *mut Certificate);
    ready_state "nvmlSystemGetConfComputeGpusReadyState": fn(*mut c_uint);
    set_ready_state "nvmlSystemSetConfComputeGpusReadyState": fn(c_uint);
}

impl Nvml {
    pub(crate) fn load() -> Result<Self, LibraryError> {
        // SAFETY: loading runs the library's initialisers; it lies on the verified root, and no thread runs yet.
        let library = unsafe { Library::open(Some(NAME), RTLD_NOW | RTLD_LOCAL) };
        let library = library.map_err(|error| LibraryError::Missing { name: NAME, why: error.to_string() })?;
        Ok(Self { table: Table::of(&library)?, _library: library })
    }

    pub(crate) fn session(&self) -> Result<Session<'_>, LibraryError> {
        // SAFETY: takes nothing; may be called more than once.
        done("nvmlInit_v2", unsafe { (self.table.init)() })?;
        Ok(Session(&self.table))
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // SAFETY: the session is initialised, and no device outlives it. A failure changes nothing for this process.
        unsafe { (self.0.shutdown)() };
    }
}

impl Session<'_> {
    pub(crate) fn driver_version(&self) -> Result<String, LibraryError> {
        let call = "nvmlSystemGetDriverVersion";
        let mut buffer = [0_u8; DRIVER_VERSION_LEN];
        // SAFETY: the buffer has the length that is said.
        done(call, unsafe { (self.0.driver_version)(buffer.as_mut_ptr().cast(), DRIVER_VERSION_LEN as c_uint) })?;
        text(call, "version", &buffer)
    }

    pub(crate) fn modes(&self) -> Result<Modes, LibraryError> {
        let mut state = SystemState { environment: 0, cc_feature: 0, dev_tools_mode: ON };
        // SAFETY: the structure is that of nvml.h and writable.
        done("nvmlSystemGetConfComputeState", unsafe { (self.0.state)(&raw mut state) })?;
        let mut settings = SystemSettings {
            version: SETTINGS_VERSION,
            environment: 0,
            cc_feature: 0,
            dev_tools_mode: ON,
            multi_gpu_mode: 0,
        };
        // SAFETY: the structure is that of nvml.h, says its own version, and is writable.
        done("nvmlSystemGetConfComputeSettings", unsafe { (self.0.settings)(&raw mut settings) })?;
        Ok(modes(state, settings))
    }

    pub(crate) fn count(&self) -> Result<u32, LibraryError> {
        let mut count = 0;
        // SAFETY: a writable number.
        done("nvmlDeviceGetCount_v2", unsafe { (self.0.count)(&raw mut count) })?;
        Ok(count)
    }

    pub(crate) fn device(&self, index: u32) -> Result<Device<'_>, LibraryError> {
        let call = "nvmlDeviceGetHandleByIndex_v2";
        let mut handle = ptr::null_mut();
        // SAFETY: a writable pointer, which the library fills with a handle of its own.
        done(call, unsafe { (self.0.by_index)(index, &raw mut handle) })?;
        if handle.is_null() {
            return Err(LibraryError::Limit { call, field: "device", found: 0 });
        }
        Ok(Device { table: self.0, handle })
    }

    /// Lets the GPUs accept work, and asks whether they do.
    pub(crate) fn set_ready(&self) -> Result<(), LibraryError> {
        // SAFETY: a number of nvml.h.
        done("nvmlSystemSetConfComputeGpusReadyState", unsafe { (self.0.set_ready_state)(ACCEPTING) })?;
        let (call, mut ready) = ("nvmlSystemGetConfComputeGpusReadyState", 0);
        // SAFETY: a writable number.
        done(call, unsafe { (self.0.ready_state)(&raw mut ready) })?;
        if ready == ACCEPTING {
            Ok(())
        } else {
            Err(LibraryError::Limit { call, field: "isAcceptingWork", found: ready.into() })
        }
    }
}

impl Device<'_> {
    pub(crate) fn uuid(&self) -> Result<String, LibraryError> {
        let call = "nvmlDeviceGetUUID";
        let mut buffer = [0_u8; UUID_LEN];
        // SAFETY: a handle of this session, and a buffer of the length that is said.
        done(call, unsafe { (self.table.uuid)(self.handle, buffer.as_mut_ptr().cast(), UUID_LEN as c_uint) })?;
        text(call, "uuid", &buffer)
    }

    /// `NVML_DEVICE_ARCH_*`: 9 is Hopper, 10 Blackwell.
    pub(crate) fn architecture(&self) -> Result<u32, LibraryError> {
        let mut found = 0;
        // SAFETY: a handle of this session and a writable number.
        done("nvmlDeviceGetArchitecture", unsafe { (self.table.architecture)(self.handle, &raw mut found) })?;
        Ok(found)
    }

    /// The report for this nonce, with the certificates of the key that signed it.
    pub(crate) fn evidence(&self, nonce: &[u8; NONCE_LEN]) -> Result<RawEvidence, LibraryError> {
        let mut report = Box::new(AttestationReport {
            is_cec_present: 0,
            size: 0,
            cec_size: 0,
            nonce: *nonce,
            report: [0; REPORT_LEN],
            cec_report: [0; CEC_REPORT_LEN],
        });
        let call = "nvmlDeviceGetConfComputeGpuAttestationReport";
        // SAFETY: a handle of this session and a writable structure of nvml.h.
        done(call, unsafe { (self.table.report)(self.handle, &raw mut *report) })?;
        let report = part(call, "attestationReportSize", &report.report, report.size)?;
        let mut chain = Box::new(Certificate {
            chain_size: 0,
            attestation_chain_size: 0,
            chain: [0; CHAIN_LEN],
            attestation_chain: [0; ATTESTATION_CHAIN_LEN],
        });
        let call = "nvmlDeviceGetConfComputeGpuCertificate";
        // SAFETY: a handle of this session and a writable structure of nvml.h.
        done(call, unsafe { (self.table.certificate)(self.handle, &raw mut *chain) })?;
        let length = chain.attestation_chain_size;
        let chain = part(call, "attestationCertChainSize", &chain.attestation_chain, length)?;
        Ok(RawEvidence { report, chain })
    }
}

fn modes(state: SystemState, settings: SystemSettings) -> Modes {
    let protected_pcie = settings.multi_gpu_mode == PROTECTED_PCIE;
    let both = state.cc_feature == ON && settings.cc_feature == ON;
    Modes {
        confidential: both || protected_pcie,
        dev_tools: state.dev_tools_mode != OFF || settings.dev_tools_mode != OFF,
        protected_pcie,
    }
}

const fn done(call: &'static str, code: c_int) -> Result<(), LibraryError> {
    if code == 0 { Ok(()) } else { Err(LibraryError::Call { call, code }) }
}

/// `nvmlConfComputeSystemState_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SystemState {
    environment: c_uint,
    cc_feature: c_uint,
    dev_tools_mode: c_uint,
}

/// `nvmlSystemConfComputeSettings_v1_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SystemSettings {
    version: c_uint,
    environment: c_uint,
    cc_feature: c_uint,
    dev_tools_mode: c_uint,
    multi_gpu_mode: c_uint,
}

/// `nvmlConfComputeGpuAttestationReport_t`. The CEC's report is another controller's and not used.
#[repr(C)]
struct AttestationReport {
    is_cec_present: c_uint,
    size: c_uint,
    cec_size: c_uint,
    nonce: [u8; NONCE_LEN],
    report: [u8; REPORT_LEN],
    cec_report: [u8; CEC_REPORT_LEN],
}

/// `nvmlConfComputeGpuCertificate_t`. The first chain is that of the session key, the second that of reports.
#[repr(C)]
struct Certificate {
    chain_size: c_uint,
    attestation_chain_size: c_uint,
    chain: [u8; CHAIN_LEN],
    attestation_chain: [u8; ATTESTATION_CHAIN_LEN],
}

const NAME: &str = "libnvidia-ml.so.1";
/// `NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE`.
const DRIVER_VERSION_LEN: usize = 80;
/// `NVML_DEVICE_UUID_V2_BUFFER_SIZE`.
const UUID_LEN: usize = 96;
/// `NVML_CC_GPU_CEC_NONCE_SIZE`.
const NONCE_LEN: usize = 0x20;
/// `NVML_CC_GPU_ATTESTATION_REPORT_SIZE`.
const REPORT_LEN: usize = 0x2000;
/// `NVML_CC_GPU_CEC_ATTESTATION_REPORT_SIZE`.
const CEC_REPORT_LEN: usize = 0x1000;
/// `NVML_GPU_CERT_CHAIN_SIZE`.
const CHAIN_LEN: usize = 0x1000;
/// `NVML_GPU_ATTESTATION_CERT_CHAIN_SIZE`.
const ATTESTATION_CHAIN_LEN: usize = 0x1400;
/// `NVML_STRUCT_VERSION(SystemConfComputeSettings, 1)`.
const SETTINGS_VERSION: c_uint = size_of::<SystemSettings>() as c_uint | 1 << 24;
/// `NVML_CC_SYSTEM_FEATURE_ENABLED`, `NVML_CC_SYSTEM_DEVTOOLS_MODE_ON`.
const ON: c_uint = 1;
/// `NVML_CC_SYSTEM_DEVTOOLS_MODE_OFF`.
const OFF: c_uint = 0;
/// `NVML_CC_SYSTEM_MULTIGPU_PROTECTED_PCIE`.
const PROTECTED_PCIE: c_uint = 1;
/// `NVML_CC_ACCEPTING_CLIENT_REQUESTS_TRUE`.
const ACCEPTING: c_uint = 1;

const _: () = assert!(size_of::<SystemState>() == 12);
const _: () = assert!(size_of::<SystemSettings>() == 20);
const _: () = assert!(SETTINGS_VERSION == 0x0100_0014);
const _: () = assert!(size_of::<AttestationReport>() == 12 + 0x20 + 0x2000 + 0x1000);
const _: () = assert!(std::mem::offset_of!(AttestationReport, report) == 44);
const _: () = assert!(size_of::<Certificate>() == 8 + 0x1000 + 0x1400);
const _: () = assert!(std::mem::offset_of!(Certificate, attestation_chain) == 8 + 0x1000);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worse_of_two_statements_counts() {
        let of = |cc: [c_uint; 2], dev: [c_uint; 2], multi_gpu_mode| {
            let [first, second] = dev;
            let state = SystemState { environment: 2, cc_feature: cc[0], dev_tools_mode: first };
            let settings = SystemSettings {
                version: SETTINGS_VERSION,
                environment: 2,
                cc_feature: cc[1],
                dev_tools_mode: second,
                multi_gpu_mode,
            };
            let Modes { confidential, dev_tools, protected_pcie } = modes(state, settings);
            (confidential, dev_tools, protected_pcie)
        };
        assert_eq!(of([1, 1], [0, 0], 0), (true, false, false));
        assert_eq!(of([1, 0], [0, 0], 0), (false, false, false));
        assert_eq!(of([0, 1], [0, 0], 0), (false, false, false));
        assert_eq!(of([2, 2], [0, 0], 0), (false, false, false));
        assert_eq!(of([0, 0], [0, 0], 1), (true, false, true));
        assert_eq!(of([0, 0], [0, 0], 2), (false, false, false));
        assert_eq!(of([1, 1], [1, 0], 0), (true, true, false));
        assert_eq!(of([1, 1], [0, 7], 0), (true, true, false));
    }
}
