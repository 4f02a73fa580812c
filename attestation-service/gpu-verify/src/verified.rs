// SPDX-License-Identifier: Apache-2.0
//! Devices whose evidence passed every check.

use serde::{Serialize, Serializer};
use types::Sha256Digest;

use crate::{Architecture, Mode, Pdi};

/// A GPU whose report, certificates and measurements were accepted. Only this crate makes one.
///
/// It does not establish that this GPU sits in the guest's slot (that needs TDISP), nor, without a statement of the
/// measured guest's driver, that DevTools mode is off: the signed report does not say.
#[derive(Debug, Clone, Serialize)]
pub struct VerifiedGpu {
    pub(crate) architecture: Architecture,
    pub(crate) chip: String,
    #[serde(serialize_with = "optional_pdi")]
    pub(crate) pdi: Option<Pdi>,
    pub(crate) leaf: Sha256Digest,
    pub(crate) driver_version: String,
    pub(crate) vbios_version: String,
    /// Nothing where the firmware is too old to say.
    pub(crate) mode: Option<Mode>,
    /// Values compared with the driver's manifest.
    pub(crate) driver_measurements: usize,
    /// Values compared with the VBIOS's manifest.
    pub(crate) vbios_measurements: usize,
    #[serde(serialize_with = "pdis")]
    pub(crate) switches: Vec<Pdi>,
}

/// An NVSwitch whose report, certificates and measurements were accepted. Only this crate makes one.
#[derive(Debug, Clone, Serialize)]
pub struct VerifiedSwitch {
    pub(crate) chip: String,
    #[serde(serialize_with = "pdi")]
    pub(crate) pdi: Pdi,
    pub(crate) leaf: Sha256Digest,
    pub(crate) vbios_version: String,
    pub(crate) vbios_measurements: usize,
    #[serde(serialize_with = "pdis")]
    pub(crate) gpus: Vec<Pdi>,
}

/// All GPUs and switches of one guest, accepted together. Only [`crate::GpuVerdict::accept`] makes one.
#[derive(Debug, Clone)]
pub struct VerifiedGpuSet {
    pub(crate) gpus: Vec<VerifiedGpu>,
    pub(crate) switches: Vec<VerifiedSwitch>,
}

impl VerifiedGpuSet {
    /// The GPUs, in the order of the evidence. Never empty.
    #[must_use]
    pub fn gpus(&self) -> &[VerifiedGpu] {
        &self.gpus
    }

    /// The switches, in the order of the evidence.
    #[must_use]
    pub fn switches(&self) -> &[VerifiedSwitch] {
        &self.switches
    }
}

impl VerifiedGpu {
    /// Generation.
    #[must_use]
    pub const fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Name of the chip by its certificate, e.g. `GH100`.
    #[must_use]
    pub fn chip(&self) -> &str {
        &self.chip
    }

    /// Identifier of the device by its certificate, where it has one.
    #[must_use]
    pub const fn pdi(&self) -> Option<Pdi> {
        self.pdi
    }

    /// Digest of the certificate that signed the report.
    #[must_use]
    pub const fn leaf(&self) -> &Sha256Digest {
        &self.leaf
    }

    /// Version of the driver.
    #[must_use]
    pub fn driver_version(&self) -> &str {
        &self.driver_version
    }

    /// Version of the VBIOS.
    #[must_use]
    pub fn vbios_version(&self) -> &str {
        &self.vbios_version
    }

    /// Number of values of the driver's manifest that the report has.
    #[must_use]
    pub const fn driver_measurements(&self) -> usize {
        self.driver_measurements
    }

    /// Number of values of the VBIOS's manifest that the report has.
    #[must_use]
    pub const fn vbios_measurements(&self) -> usize {
        self.vbios_measurements
    }

    /// How it is used, where the report says it.
    #[must_use]
    pub const fn mode(&self) -> Option<Mode> {
        self.mode
    }
}

impl VerifiedSwitch {
    /// Its identifier.
    #[must_use]
    pub const fn pdi(&self) -> Pdi {
        self.pdi
    }

    /// Version of its firmware.
    #[must_use]
    pub fn vbios_version(&self) -> &str {
        &self.vbios_version
    }
}

fn pdi<S: Serializer>(pdi: &Pdi, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(pdi)
}

fn optional_pdi<S: Serializer>(found: &Option<Pdi>, serializer: S) -> Result<S::Ok, S::Error> {
    match found {
        None => serializer.serialize_none(),
        Some(found) => pdi(found, serializer),
    }
}

fn pdis<S: Serializer>(found: &[Pdi], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(found.iter().map(ToString::to_string))
}
