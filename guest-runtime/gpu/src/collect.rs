// SPDX-License-Identifier: Apache-2.0
//! From the libraries' calls to what init is told.

use gpu_protocol::{Collected, FailureKind, GpuFailure, MAX_DEVICES};
use types::{Base64, GpuDriver, GpuReport, Hex32};

use crate::ffi::{Libraries, LibraryError, Nscq, RawEvidence, nvml};

/// Reports of all devices for one nonce, and what the driver says of itself.
pub(crate) fn collect(libraries: &Libraries, nonce: &Hex32, gpus: u8, switches: u8) -> Result<Collected, GpuFailure> {
    if !(1..=MAX_DEVICES).contains(&gpus) || switches > MAX_DEVICES {
        return Err(GpuFailure::new(FailureKind::Order, "gpus must be 1 to 16, switches 0 to 16"));
    }
    let switches = all_switches(libraries, nonce, switches)?;
    let session = libraries.nvml.session().map_err(driver_failed)?;
    Ok(Collected { driver: driver(&session)?, gpus: all_gpus(&session, nonce, gpus)?, switches })
}

/// Lets the GPUs accept work.
pub(crate) fn set_ready(libraries: &Libraries) -> Result<(), GpuFailure> {
    libraries.nvml.session().and_then(|session| session.set_ready()).map_err(driver_failed)
}

fn all_switches(libraries: &Libraries, nonce: &Hex32, expected: u8) -> Result<Vec<GpuReport>, GpuFailure> {
    if expected == 0 {
        return Ok(Vec::new());
    }
    let missing = |error: &LibraryError| GpuFailure::new(FailureKind::Fabric, &error.to_string());
    let nscq: &Nscq = libraries.nscq.as_ref().map_err(missing)?;
    let session = nscq.session().map_err(driver_failed)?;
    let labels = session.switches(MAX_DEVICES.into()).map_err(driver_failed)?;
    if labels.len() != usize::from(expected) {
        let detail = format!("the driver has {} switches, {expected} were asked for", labels.len());
        return Err(GpuFailure::new(FailureKind::Count, &detail));
    }
    let switch = |label: String| session.evidence(&label, nonce.as_bytes()).map(|evidence| (label, evidence));
    let labels = labels.into_iter().enumerate();
    labels.map(|(index, label)| report(format_args!("switch {index}"), switch(label))).collect()
}

fn driver(session: &nvml::Session<'_>) -> Result<GpuDriver, GpuFailure> {
    let version = session.driver_version().map_err(driver_failed)?;
    let nvml::Modes { confidential, dev_tools, protected_pcie } = session.modes().map_err(driver_failed)?;
    Ok(GpuDriver { version, confidential, dev_tools, protected_pcie })
}

fn all_gpus(session: &nvml::Session<'_>, nonce: &Hex32, expected: u8) -> Result<Vec<GpuReport>, GpuFailure> {
    let found = session.count().map_err(driver_failed)?;
    if found != u32::from(expected) {
        let detail = format!("the driver has {found} GPUs, {expected} were asked for");
        return Err(GpuFailure::new(FailureKind::Count, &detail));
    }
    let gpu = |index| {
        let device = session.device(index)?;
        let architecture = device.architecture()?;
        if architecture < HOPPER {
            let (call, field) = ("nvmlDeviceGetArchitecture", "arch");
            return Err(LibraryError::Limit { call, field, found: architecture.into() });
        }
        Ok((device.uuid()?, device.evidence(nonce.as_bytes())?))
    };
    (0..found).map(|index| report(format_args!("gpu {index}"), gpu(index))).collect()
}

fn report(
    device: std::fmt::Arguments<'_>,
    found: Result<(String, RawEvidence), LibraryError>,
) -> Result<GpuReport, GpuFailure> {
    let failed = |why: &dyn std::fmt::Display| GpuFailure::new(FailureKind::Evidence, &format!("{device}: {why}"));
    let (uuid, RawEvidence { report, chain }) = found.map_err(|error| failed(&error))?;
    match (Base64::new(report), Base64::new(chain)) {
        (Some(report), Some(chain)) => Ok(GpuReport { uuid, report, chain }),
        _ => Err(failed(&"a report or chain longer than evidence may be")),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn driver_failed(error: LibraryError) -> GpuFailure {
    GpuFailure::from(&error)
}

/// `NVML_DEVICE_ARCH_HOPPER`: older ones have no confidential mode.
const HOPPER: u32 = 9;
