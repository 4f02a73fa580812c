// SPDX-License-Identifier: Apache-2.0
//! Many manifests at hand, and those among them that a machine's reports ask for.

use crate::{
    DeviceEvidence, GpuAnchors, MAX_RIMS,
    policy::Requirement,
    rim::{Rim, RimFault, RimIdentity, RimRefused},
    spdm::SpdmReport,
};

/// Manifests as files, by what each says that it is about. Nothing in it is verified: [`RimLibrary::verify`] does that with those
/// that are needed, at the time of an appraisal.
#[derive(Debug, Clone, Default)]
pub struct RimLibrary {
    manifests: Vec<(RimIdentity, Vec<u8>)>,
}

/// Why a set of manifests was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LibraryError {
    /// Too many.
    #[error("at most {MAX_LIBRARY} manifests, found {0}")]
    TooMany(usize),
    /// One that is no manifest.
    #[error("manifest {index}: {fault}")]
    Malformed {
        /// Its place among those given.
        index: usize,
        /// Why.
        fault: RimFault,
    },
}

impl RimLibrary {
    /// Without any manifest.
    pub const EMPTY: &'static Self = &Self { manifests: Vec::new() };

    /// Takes manifests in any order.
    ///
    /// # Errors
    /// [`LibraryError`] names the manifest that is none.
    pub fn new(files: Vec<Vec<u8>>) -> Result<Self, LibraryError> {
        if files.len() > MAX_LIBRARY {
            return Err(LibraryError::TooMany(files.len()));
        }
        let claims = |(index, bytes): (usize, Vec<u8>)| match Rim::claims(&bytes) {
            Ok(identity) => Ok((identity, bytes)),
            Err(fault) => Err(LibraryError::Malformed { index, fault }),
        };
        Ok(Self { manifests: files.into_iter().enumerate().map(claims).collect::<Result<_, _>>()? })
    }

    /// Number of manifests.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.manifests.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.manifests.is_empty()
    }

    /// Verifies those that claim a version which one of the reports names. What a library holds for other machines is not looked
    /// at; a manifest that is needed and not good refuses the evidence. Of more than [`MAX_RIMS`] one more is verified, so that the
    /// appraisal refuses their number.
    #[must_use]
    pub fn verify(
        &self,
        devices: &[DeviceEvidence<'_>],
        anchors: &GpuAnchors,
        ocsp: &[Vec<u8>],
        revocation: Requirement,
        now: u64,
    ) -> Vec<Result<Rim, RimRefused>> {
        let versions: Vec<String> = devices.iter().flat_map(|device| versions(device.report)).collect();
        let wanted = self.manifests.iter().filter(|(identity, _)| versions.contains(&identity.version));
        wanted
            .take(MAX_RIMS.saturating_add(1))
            .map(|(_, bytes)| Rim::verify(bytes, anchors, ocsp, revocation, now))
            .collect()
    }
}

/// Versions that a report names; none where it cannot be read, which is the appraisal's to say.
pub(crate) fn versions(report: &[u8]) -> Vec<String> {
    let Ok(report) = SpdmReport::parse(report) else { return Vec::new() };
    if let Ok(fields) = report.opaque.gpu() {
        return vec![fields.driver_version, fields.vbios_version];
    }
    report.opaque.switch().map(|fields| vec![fields.vbios_version]).unwrap_or_default()
}

/// Most manifests of a library.
pub const MAX_LIBRARY: usize = 512;
