// SPDX-License-Identifier: Apache-2.0
//! What the registers of a firmware file depend on, without its bytes.

use serde::{Deserialize, Serialize};
use tdx_spec::{Cursor, ReadError, SectionKind, Tdvf, TdvfError};
use types::Sha384Digest;

use crate::mrtd::{self, PageOrder};

/// Measurements of a firmware file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirmwareMeasurements {
    /// Which events the firmware measures, and in which order.
    pub generation: FirmwareGeneration,
    /// MRTD when each page is added and measured in turn (QEMU 10.1 and later).
    pub mr_td_per_page: Sha384Digest,
    /// MRTD when all pages of a section are added before they are measured (QEMU 8 with TDX patches).
    pub mr_td_two_pass: Sha384Digest,
    /// SHA-384 of the configuration volume.
    pub configuration_volume: Sha384Digest,
    /// Guest address of the TD HOB.
    pub td_hob_address: u64,
    /// Memory that the host adds at the start beside the firmware volumes, in the file's order.
    pub added_memory: Vec<MemoryRange>,
}

/// A range of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryRange {
    /// First address.
    pub address: u64,
    /// Length in bytes.
    pub length: u64,
}

/// Which firmware source decides the events. Not recognisable in the file: the release says which.
///
/// Each is `OvmfPkgX64` without Secure Boot: `initrd=initrd` is the last word of the command line.
/// Later sources are left out on purpose: see [`UnsupportedGeneration`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum FirmwareGeneration {
    /// EDK II stable 2024.08: the second separator goes to RTMR0, none to RTMR1 (`TdTcg2Dxe.c`, `OnReadyToBoot`). Kernels
    /// are those that QEMU wrote loader fields into. Read in the source; no binary of it was compared.
    Edk2Stable202408,
    /// EDK II stable 2024.11: separators as in 2025.02 (commit efaf8931bb), kernels as in 2024.08. Read in the source; no
    /// binary of it was compared.
    Edk2Stable202411,
    /// EDK II stable 2025.02, as in Debian 13's `OVMF.fd`: kernels taken from `etc/boot/kernel` when QEMU offers it
    /// (`QemuKernelLoaderFsDxe.c`, named blobs).
    Edk2Stable202502,
}

/// Why a firmware source is not supported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnsupportedGeneration {
    /// 2025.05 and later measure SMBIOS tables into RTMR0 (`OvmfPkgX64.fdf`, commit cd76265f1a;
    /// `SmbiosMeasurementDxe.c`). QEMU puts the processor's signature and feature flags into them, and the firmware its own
    /// build's name, version and date: no machine shape says these. They also measure fw_cfg items in a trust domain
    /// (`QemuFwCfgCacheInit.c`), which nothing at hand could confirm.
    #[error(
        "firmware of {0} measures SMBIOS tables, which the host's processor enters: its RTMR0 cannot be computed from a machine's shape; use edk2-stable202502"
    )]
    MeasuresSmbios(String),
    /// No name of a source that is known here.
    #[error("firmware source {0:?} is not known; known are edk2-stable202408, edk2-stable202411 and edk2-stable202502")]
    Unknown(String),
}

/// Where the firmware puts the words `initrd=initrd` on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitrdWord {
    /// Before the command line (EDK II after 2025.02).
    Before,
    /// After the command line (EDK II up to 2025.02).
    After,
}

/// Why a firmware file cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FirmwareError {
    /// No usable TDVF metadata.
    #[error(transparent)]
    Tdvf(#[from] TdvfError),
    /// Not exactly one section of a kind.
    #[error("the firmware must have exactly one {0} section")]
    SectionCount(&'static str),
    /// The configuration volume is truncated.
    #[error("configuration volume: {0}")]
    Volume(#[from] ReadError),
    /// The configuration volume is no variable store.
    #[error("the configuration volume is no UEFI variable store: {0} is wrong")]
    NotVariableStore(&'static str),
    /// The variable store has variables, such as enrolled Secure Boot keys.
    #[error("the firmware's variable store is not empty; images with enrolled variables are not supported")]
    VariablesPresent,
}

impl FirmwareGeneration {
    /// Where this firmware puts `initrd=initrd`.
    #[must_use]
    pub const fn initrd_word(self) -> InitrdWord {
        match self {
            Self::Edk2Stable202408 | Self::Edk2Stable202411 | Self::Edk2Stable202502 => InitrdWord::After,
        }
    }

    /// Whether it takes the untouched kernel that QEMU 10.0 and later offer.
    #[must_use]
    pub const fn takes_untouched_kernel(self) -> bool {
        match self {
            Self::Edk2Stable202408 | Self::Edk2Stable202411 => false,
            Self::Edk2Stable202502 => true,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Edk2Stable202408 => "edk2-stable202408",
            Self::Edk2Stable202411 => "edk2-stable202411",
            Self::Edk2Stable202502 => "edk2-stable202502",
        }
    }
}

impl core::str::FromStr for FirmwareGeneration {
    type Err = UnsupportedGeneration;

    fn from_str(name: &str) -> Result<Self, UnsupportedGeneration> {
        let known = [Self::Edk2Stable202408, Self::Edk2Stable202411, Self::Edk2Stable202502];
        if let Some(generation) = known.into_iter().find(|generation| generation.name() == name) {
            return Ok(generation);
        }
        let name: String = name.chars().take(40).collect();
        let month = name.strip_prefix("edk2-stable").and_then(|rest| rest.get(..6)).and_then(|m| m.parse::<u32>().ok());
        Err(match month {
            Some(FIRST_WITH_SMBIOS..=LAST_MONTH) => UnsupportedGeneration::MeasuresSmbios(name),
            _ => UnsupportedGeneration::Unknown(name),
        })
    }
}

impl TryFrom<String> for FirmwareGeneration {
    type Error = UnsupportedGeneration;

    fn try_from(name: String) -> Result<Self, UnsupportedGeneration> {
        name.parse()
    }
}

impl From<FirmwareGeneration> for String {
    fn from(generation: FirmwareGeneration) -> Self {
        generation.name().to_owned()
    }
}

impl FirmwareMeasurements {
    /// Measures a firmware file.
    ///
    /// # Errors
    /// [`FirmwareError`] names the rule.
    pub fn of(firmware: &[u8], generation: FirmwareGeneration) -> Result<Self, FirmwareError> {
        let tdvf = Tdvf::parse(firmware)?;
        let mut hobs = tdvf.of_kind(SectionKind::TdHob);
        let (Some(td_hob), None) = (hobs.next(), hobs.next()) else {
            return Err(FirmwareError::SectionCount("TD HOB"));
        };
        let mut volumes = tdvf.of_kind(SectionKind::Cfv);
        let (Some(volume), None) = (volumes.next().and_then(|cfv| cfv.raw(firmware)), volumes.next()) else {
            return Err(FirmwareError::SectionCount("configuration volume"));
        };
        check_variable_store_is_empty(volume)?;
        let added_memory = tdvf
            .sections()
            .iter()
            .filter(|section| matches!(section.kind, SectionKind::TdHob | SectionKind::TempMem))
            .map(|section| MemoryRange { address: section.memory_address, length: section.memory_len })
            .collect();
        let mr_td = |order| mrtd::mr_td(firmware, &tdvf, order).ok_or(FirmwareError::SectionCount("measured"));
        Ok(Self {
            generation,
            mr_td_per_page: mr_td(PageOrder::PerPage)?,
            mr_td_two_pass: mr_td(PageOrder::TwoPass)?,
            configuration_volume: Sha384Digest::of(volume),
            td_hob_address: td_hob.memory_address,
            added_memory,
        })
    }
}

/// The calculator knows the variables' measurements only for an empty store, so it must be one.
///
/// Source: UEFI PI Specification 1.8 volume 3 section 3.2.1 (`EFI_FIRMWARE_VOLUME_HEADER`); EDK II
/// `MdeModulePkg/Include/Guid/VariableFormat.h` (`VARIABLE_STORE_HEADER`, 28 bytes).
fn check_variable_store_is_empty(volume: &[u8]) -> Result<(), FirmwareError> {
    let mut cursor = Cursor::new(volume);
    cursor.skip("zero vector, file system and length", 40)?;
    if cursor.array::<4>("signature")? != *b"_FVH" {
        return Err(FirmwareError::NotVariableStore("volume signature"));
    }
    cursor.skip("attributes", 4)?;
    let header_len = usize::from(cursor.u16("header length")?);
    let mut cursor = Cursor::new(volume);
    cursor.skip("volume header", header_len)?;
    if cursor.array::<16>("store signature")? != AUTHENTICATED_VARIABLES {
        return Err(FirmwareError::NotVariableStore("store signature"));
    }
    let store_len = usize::try_from(cursor.u32("store size")?).unwrap_or(usize::MAX);
    cursor.skip("format, state and reserved", 8)?;
    let variables = store_len.checked_sub(28).ok_or(FirmwareError::NotVariableStore("store size"))?;
    if cursor.slice("variables", variables)?.iter().any(|byte| *byte != ERASED) {
        return Err(FirmwareError::VariablesPresent);
    }
    Ok(())
}

const FIRST_WITH_SMBIOS: u32 = 202_505;
const LAST_MONTH: u32 = 299_912;
/// `gEfiAuthenticatedVariableGuid`, aaf32c78-947b-439a-a180-2e144ec37792.
const AUTHENTICATED_VARIABLES: [u8; 16] =
    [0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92];
/// Flash that was never written.
const ERASED: u8 = 0xff;

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn volume() -> Vec<u8> {
        let mut volume = vec![0_u8; 72];
        volume[40..44].copy_from_slice(b"_FVH");
        volume[48] = 72;
        volume.extend(AUTHENTICATED_VARIABLES);
        volume.extend(100_u32.to_le_bytes());
        volume.extend([0x5a, 0xfe, 0, 0, 0, 0, 0, 0]);
        volume.extend([0xff; 72]);
        volume.extend([0; 16]);
        volume
    }

    #[test]
    fn generations_have_one_name_each_and_newer_ones_are_refused_with_the_reason() {
        for name in ["edk2-stable202408", "edk2-stable202411", "edk2-stable202502"] {
            let generation: FirmwareGeneration = serde_json::from_value(name.into()).unwrap();
            assert_eq!(serde_json::to_value(generation).unwrap(), name);
        }
        for name in ["edk2-stable202505", "edk2-stable202508.01", "edk2-stable202605"] {
            let refused = name.parse::<FirmwareGeneration>().unwrap_err();
            assert_eq!(refused, UnsupportedGeneration::MeasuresSmbios(name.into()));
            assert!(
                serde_json::from_value::<FirmwareGeneration>(name.into()).unwrap_err().to_string().contains("SMBIOS")
            );
        }
        for name in [
            "",
            "edk2-stable",
            "edk2-stable202405",
            "edk2-stable2025",
            "Edk2Stable202502",
            "edk2-stable999999",
            "edk2-stable20250é",
        ] {
            assert_eq!(name.parse::<FirmwareGeneration>(), Err(UnsupportedGeneration::Unknown(name.into())));
        }
    }

    #[test]
    fn only_an_empty_store_is_accepted() {
        assert_eq!(check_variable_store_is_empty(&volume()), Ok(()));
        let mut used = volume();
        used[72 + 28] = 0xaa;
        assert_eq!(check_variable_store_is_empty(&used), Err(FirmwareError::VariablesPresent));
        let mut other = volume();
        other[72] ^= 1;
        assert_eq!(check_variable_store_is_empty(&other), Err(FirmwareError::NotVariableStore("store signature")));
        for len in 0..72 + 100 {
            assert!(check_variable_store_is_empty(&volume()[..len]).is_err(), "{len}");
        }
    }
}
