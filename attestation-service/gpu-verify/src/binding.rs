// SPDX-License-Identifier: Apache-2.0
//! How reports in a guest's evidence are tied to its TDX quote: the nonce is made of the guest's keys, and REPORTDATA
//! covers the reports (`attested_channel::gpu_nonce`, `attested_channel::gpu_digest`).

use attested_channel::gpu_nonce;
use types::{GpuEvidence, Hex32, Role};

use crate::DeviceEvidence;

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
    #[error("gpu.reports must be sorted by UUID, each once")]
    Order,
}

/// The nonce that every device of this guest must have been asked with.
///
/// The caller shows that the keys are those of the quote's REPORTDATA, and that REPORTDATA covers `gpu`.
///
/// # Errors
/// [`GpuBindingError`] names the rule.
pub fn bound_nonce(
    role: Role,
    instance_key: &Hex32,
    hpke_key: &Hex32,
    gpu: &GpuEvidence,
) -> Result<[u8; 32], GpuBindingError> {
    if gpu.reports.is_empty() {
        return Err(GpuBindingError::Empty);
    }
    if gpu.epoch == 0 {
        return Err(GpuBindingError::Zero("epoch"));
    }
    if *gpu.random.as_bytes() == [0; 32] {
        return Err(GpuBindingError::Zero("random"));
    }
    if !gpu.reports.is_sorted_by(|a, b| a.uuid < b.uuid) {
        return Err(GpuBindingError::Order);
    }
    Ok(*gpu_nonce(role, instance_key, hpke_key, gpu.epoch, &gpu.random).as_bytes())
}

/// The devices of a guest's evidence, in its order.
#[must_use]
pub fn devices(gpu: &GpuEvidence) -> Vec<DeviceEvidence<'_>> {
    gpu.reports
        .iter()
        .map(|device| DeviceEvidence { report: device.report.as_slice(), chain: device.chain.as_slice() })
        .collect()
}
