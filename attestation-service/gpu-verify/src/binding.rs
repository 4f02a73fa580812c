// SPDX-License-Identifier: Apache-2.0
//! How reports in a guest's evidence are tied to its TDX quote: the nonce is made of the guest's keys, and REPORTDATA
//! covers the reports (`attested_channel::gpu_nonce`, `attested_channel::gpu_digest`).

use attested_channel::gpu_nonce;
use types::{GpuDriver, GpuEvidence, GpuReport, Hex32, Role};

use crate::{DeviceEvidence, DriverState};

/// Why the GPU part of a guest's evidence was refused before any report was read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GpuBindingError {
    /// No reports.
    #[error("the evidence has no GPU report")]
    Empty,
    /// Epochs count from 1, and the randomness is the guest's own.
    #[error("gpu.{0} must not be zero beside reports")]
    Zero(&'static str),
    /// One order only, so that one set has one digest.
    #[error("gpu.{0} must be sorted by UUID, each once")]
    Order(&'static str),
}

/// The nonce that every device of this guest must have been asked with. Its HPKE key is zero: devices are asked once per boot,
/// before any such key is made; REPORTDATA ties later keys to the same reports.
///
/// The caller shows that the key is that of the quote's REPORTDATA, and that REPORTDATA covers `gpu`.
///
/// # Errors
/// [`GpuBindingError`] names the rule.
pub fn bound_nonce(role: Role, instance_key: &Hex32, gpu: &GpuEvidence) -> Result<[u8; 32], GpuBindingError> {
    if gpu.reports.is_empty() {
        return Err(GpuBindingError::Empty);
    }
    if gpu.epoch == 0 {
        return Err(GpuBindingError::Zero("epoch"));
    }
    if *gpu.random.as_bytes() == [0; 32] {
        return Err(GpuBindingError::Zero("random"));
    }
    for (name, reports) in [("reports", &gpu.reports), ("switches", &gpu.switches)] {
        if !reports.is_sorted_by(|a, b| a.uuid < b.uuid) {
            return Err(GpuBindingError::Order(name));
        }
    }
    Ok(*gpu_nonce(role, instance_key, &Hex32::default(), gpu.epoch, &gpu.random).as_bytes())
}

/// The GPUs of a guest's evidence, in its order.
#[must_use]
pub fn devices(gpu: &GpuEvidence) -> Vec<DeviceEvidence<'_>> {
    evidence(&gpu.reports)
}

/// The switches of a guest's evidence, in its order.
#[must_use]
pub fn switches(gpu: &GpuEvidence) -> Vec<DeviceEvidence<'_>> {
    evidence(&gpu.switches)
}

/// What the guest states of its driver: worth as much as the quote that covers the evidence.
#[must_use]
pub fn driver_state(gpu: &GpuEvidence) -> Option<DriverState> {
    let GpuDriver { version: _, confidential, dev_tools, protected_pcie } = gpu.driver.as_ref()?;
    Some(DriverState { confidential: *confidential, dev_tools: *dev_tools, protected_pcie: *protected_pcie })
}

fn evidence(reports: &[GpuReport]) -> Vec<DeviceEvidence<'_>> {
    reports
        .iter()
        .map(|device| DeviceEvidence { report: device.report.as_slice(), chain: device.chain.as_slice() })
        .collect()
}
