// SPDX-License-Identifier: Apache-2.0
//! Verifies evidence of NVIDIA GPUs and NVSwitches without a network.
//!
//! A device signs an SPDM 1.1 measurement report; certificates lead from its key to NVIDIA's root; reference manifests,
//! signed by NVIDIA, too, say which measurements a driver and a firmware have. All three are checked here, and what
//! the report says of the device against a [`GpuPolicy`]. Every check stands in a [`GpuVerdict`] with code, field,
//! expected and found value, and fix; the codes are listed in `docs/gpu-evidence.md`.
//!
//! Not established: that the GPU is the one in the guest's slot, and that DevTools mode is off. Only the driver knows
//! the second, so it is a statement of the measured guest ([`DriverState`]).
//!
//! Pure: bytes, the time, trust anchors and OCSP answers are arguments. All work is bounded by the caps of the
//! inputs: [`MAX_REPORT_LEN`], [`MAX_CHAIN_LEN`], [`MAX_XML_LEN`], [`MAX_ANSWER_LEN`], [`MAX_DEVICES`], [`MAX_RIMS`].

mod anchors;
mod appraisal;
mod binding;
mod certificate;
mod chain;
mod cursor;
mod device;
mod evidence;
mod gpu;
mod library;
mod measured;
mod nvswitch;
mod ocsp;
mod opaque;
mod policy;
mod rim;
mod rim_signature;
mod spdm;
mod statements;
mod topology;
mod verdict;
mod verified;
mod xml;

pub use anchors::GpuAnchors;
pub use appraisal::{DeviceEvidence, GpuAppraisal, MAX_DEVICES, MAX_RIMS};
pub use binding::{GpuBindingError, bound_nonce, devices, driver_state, switches};
pub use certificate::MAX_CHAIN_LEN;
pub use chain::ChainFault;
pub use cursor::ReportMalformed;
pub use library::{LibraryError, MAX_LIBRARY, RimLibrary};
pub use ocsp::{MAX_ANSWER_LEN, MAX_ANSWERS};
pub use opaque::Pdi;
pub use policy::{Architecture, DriverState, GpuPolicy, MAX_GPU_POLICY_LEN, Mode, PolicyError, Requirement, Topology};
pub use rim::{Rim, RimFault, RimIdentity, RimRefused};
pub use spdm::{MAX_REPORT_LEN, MAX_VALUE_LEN, Measurement, SpdmReport};
pub use statements::{Objections, Statements};
pub use verdict::{GpuCheck, GpuSummary, GpuVerdict};
pub use verified::{VerifiedGpu, VerifiedGpuSet, VerifiedSwitch};
pub use xml::MAX_XML_LEN;
