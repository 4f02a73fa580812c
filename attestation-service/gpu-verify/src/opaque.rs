// SPDX-License-Identifier: Apache-2.0
//! The opaque data of a report: type, length and value, each type at most once.
//!
//! No public document describes the fields. Names, numbers and layouts are those of NVIDIA's published verifiers
//! (`gpu_opaque_data_parser.hpp` and `switch_opaque_data_parser.hpp` of attestation-sdk); what only looking at
//! real reports shows is marked so. A type that those verifiers do not know is refused, as they do.

use std::collections::BTreeMap;

use crate::cursor::{Cursor, Parsed, ReportMalformed};

/// Raw fields by type.
#[derive(Debug, Clone)]
pub(crate) struct Opaque(BTreeMap<u16, Vec<u8>>);

/// What a GPU says of itself. Signed by the device as part of its report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GpuFields {
    /// Version of the driver, as in the name of its reference manifest.
    pub(crate) driver_version: String,
    /// Version of the VBIOS, five pairs of digits: `96.00.5E.00.01`.
    pub(crate) vbios_version: String,
    /// Board project, e.g. `1010`.
    pub(crate) project: String,
    /// SKU of the project.
    pub(crate) project_sku: String,
    /// SKU of the chip.
    pub(crate) chip_sku: String,
    /// Name of the chip; newer firmware only.
    pub(crate) chip_info: Option<String>,
    /// Whether the video decoder 0 is there: without it measurement 35 has no meaning.
    pub(crate) nvdec0_enabled: bool,
    /// Digest of the firmware that holds the signing key; older firmware leaves it out.
    pub(crate) fwid: Option<[u8; 48]>,
    /// How the GPU is used; older firmware leaves it out.
    pub(crate) mode: Option<ReportedMode>,
    /// Whether the protected PCIe mode is on; older firmware leaves it out.
    pub(crate) protected_pcie: Option<bool>,
    /// Identifiers of the switches at the GPU's links, without unused links; sorted, each once.
    pub(crate) switches: Vec<Pdi>,
}

/// What an NVSwitch says of itself. Signed by the device as part of its report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SwitchFields {
    /// Version of the firmware: `96.10.55.00.01`.
    pub(crate) vbios_version: String,
    /// The switch's own identifier.
    pub(crate) pdi: Pdi,
    /// Identifiers of the GPUs at its ports; sorted, each once.
    pub(crate) gpus: Vec<Pdi>,
    /// Whether its configuration is locked.
    pub(crate) locked: bool,
    /// Digest of the firmware that holds the signing key, where there is one.
    pub(crate) fwid: Option<[u8; 48]>,
}

/// Per-device identifier, in the byte order in which a switch names itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pdi(pub [u8; 8]);

/// The feature flag of a GPU (type 36).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReportedMode {
    /// Several GPUs passed through, each in confidential mode.
    Mpt,
    /// One GPU passed through, in confidential mode.
    Spt,
    /// Protected PCIe: eight GPUs and their switches as one.
    Ppcie,
    /// Another number.
    Unknown(u16),
}

impl Opaque {
    pub(crate) fn parse(bytes: &[u8]) -> Parsed<Self> {
        let mut input = Cursor::new(bytes);
        let mut fields = BTreeMap::new();
        while !input.is_empty() {
            let kind = input.u16("opaque.type")?;
            let len = usize::from(input.u16("opaque.size")?);
            let value = input.take(len, &format!("opaque[{kind}]"))?;
            if fields.insert(kind, value.to_vec()).is_some() {
                return Err(ReportMalformed::new(format!("opaque[{kind}]"), "stands twice"));
            }
        }
        Ok(Self(fields))
    }

    /// Reads the fields of a GPU.
    pub(crate) fn gpu(&self) -> Parsed<GpuFields> {
        self.known(&GPU_TYPES)?;
        let version = self.number(OPAQUE_VERSION)?.unwrap_or(0);
        if version > MAX_OPAQUE_VERSION {
            return Err(malformed(OPAQUE_VERSION, &format!("version {version} is not known")));
        }
        let mode = self.number(FEATURE_FLAG)?.map(|flag| match flag {
            0 => ReportedMode::Mpt,
            1 => ReportedMode::Spt,
            2 => ReportedMode::Ppcie,
            other => ReportedMode::Unknown(u16::try_from(other).unwrap_or(u16::MAX)),
        });
        // Below version 1 the field has no meaning that is published.
        let mode = mode.filter(|_| version >= 1);
        Ok(GpuFields {
            driver_version: self.text(DRIVER_VERSION)?,
            vbios_version: self.gpu_vbios()?,
            project: self.text(PROJECT)?,
            project_sku: self.text(PROJECT_SKU)?,
            chip_sku: self.text(CHIP_SKU)?,
            chip_info: self.0.contains_key(&CHIP_INFO).then(|| self.text(CHIP_INFO)).transpose()?,
            nvdec0_enabled: self.switched(NVDEC0)?.ok_or_else(|| malformed(NVDEC0, "is missing"))?,
            fwid: self.fwid()?,
            mode,
            protected_pcie: self.switched(PROTECTED_PCIE)?,
            switches: self.switches()?,
        })
    }

    /// Reads the fields of an NVSwitch.
    pub(crate) fn switch(&self) -> Parsed<SwitchFields> {
        self.known(&SWITCH_TYPES)?;
        let pdi = self.required(DEVICE_PDI)?;
        let pdi = Pdi(pdi.try_into().map_err(|_| malformed(DEVICE_PDI, "must have 8 bytes"))?);
        let ports = self.required(SWITCH_GPU_PDIS)?;
        let gpus = ports.get(..8 * 8).ok_or_else(|| malformed(SWITCH_GPU_PDIS, "must name 8 devices"))?;
        Ok(SwitchFields {
            vbios_version: self.text(VBIOS_VERSION)?,
            pdi,
            gpus: pdis(gpus, false),
            locked: self.number(SWITCH_LOCK)?.ok_or_else(|| malformed(SWITCH_LOCK, "is missing"))? == 1,
            fwid: self.fwid()?,
        })
    }

    fn known(&self, types: &[core::ops::RangeInclusive<u16>]) -> Parsed<()> {
        match self.0.keys().find(|kind| !types.iter().any(|range| range.contains(kind))) {
            None => Ok(()),
            Some(kind) => Err(malformed(*kind, "is no type that this kind of device is known to have")),
        }
    }

    fn required(&self, kind: u16) -> Parsed<&[u8]> {
        self.0.get(&kind).map(Vec::as_slice).ok_or_else(|| malformed(kind, "is missing"))
    }

    /// Printable ASCII, with zeros only at the end.
    fn text(&self, kind: u16) -> Parsed<String> {
        let bytes = self.required(kind)?;
        let len = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last.saturating_add(1));
        let text = bytes.get(..len).unwrap_or_default();
        if text.is_empty() || text.len() > MAX_TEXT || !text.iter().all(u8::is_ascii_graphic) {
            return Err(malformed(kind, &format!("must be 1 to {MAX_TEXT} printable characters")));
        }
        Ok(text.iter().map(|byte| char::from(*byte)).collect())
    }

    /// Little-endian, at most eight bytes.
    fn number(&self, kind: u16) -> Parsed<Option<u64>> {
        let Some(bytes) = self.0.get(&kind) else { return Ok(None) };
        if bytes.is_empty() || bytes.len() > 8 {
            return Err(malformed(kind, "must have 1 to 8 bytes"));
        }
        Ok(Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))))
    }

    /// 0xAA for on and 0x55 for off: published for the decoder, seen alike for the protected PCIe mode.
    fn switched(&self, kind: u16) -> Parsed<Option<bool>> {
        match self.0.get(&kind).map(Vec::as_slice) {
            None => Ok(None),
            Some([0xaa]) => Ok(Some(true)),
            Some([0x55]) => Ok(Some(false)),
            Some(_) => Err(malformed(kind, "must be 0xaa or 0x55")),
        }
    }

    fn fwid(&self) -> Parsed<Option<[u8; 48]>> {
        let Some(bytes) = self.0.get(&FWID) else { return Ok(None) };
        bytes.as_slice().try_into().map(Some).map_err(|_| malformed(FWID, "must have 48 bytes"))
    }

    /// Eight bytes, of which the first four stand in reverse order and the fifth ends the version.
    fn gpu_vbios(&self) -> Parsed<String> {
        match *self.required(VBIOS_VERSION)? {
            [d, c, b, a, e, 0, 0, 0] => Ok(format!("{a:02X}.{b:02X}.{c:02X}.{d:02X}.{e:02X}")),
            _ => Err(malformed(VBIOS_VERSION, "must have 8 bytes, the last three zero")),
        }
    }

    fn switches(&self) -> Parsed<Vec<Pdi>> {
        let Some(bytes) = self.0.get(&DEVICE_PDI) else { return Ok(Vec::new()) };
        if bytes.len() % 8 != 0 {
            return Err(malformed(DEVICE_PDI, "must name devices by 8 bytes each"));
        }
        Ok(pdis(bytes, true))
    }
}

/// Devices by 8 bytes each; an unused link is zero. GPUs write the bytes in reverse.
fn pdis(bytes: &[u8], reversed: bool) -> Vec<Pdi> {
    let mut found: Vec<Pdi> = bytes
        .chunks_exact(8)
        .filter_map(|chunk| <[u8; 8]>::try_from(chunk).ok())
        .filter(|pdi| *pdi != [0; 8])
        .map(|mut pdi| {
            if reversed {
                pdi.reverse();
            }
            Pdi(pdi)
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn malformed(kind: u16, rule: &str) -> ReportMalformed {
    ReportMalformed::new(format!("opaque[{kind}]"), rule)
}

impl core::fmt::Display for Pdi {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl core::fmt::Debug for Pdi {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Pdi({self})")
    }
}

impl core::fmt::Display for ReportedMode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Mpt => f.write_str("mpt"),
            Self::Spt => f.write_str("spt"),
            Self::Ppcie => f.write_str("ppcie"),
            Self::Unknown(flag) => write!(f, "unknown ({flag})"),
        }
    }
}

const MAX_TEXT: usize = 32;
const MAX_OPAQUE_VERSION: u64 = 1;
const GPU_TYPES: [core::ops::RangeInclusive<u16>; 1] = [1..=36];
const SWITCH_TYPES: [core::ops::RangeInclusive<u16>; 1] = [1..=27];
const DRIVER_VERSION: u16 = 3;
const VBIOS_VERSION: u16 = 6;
const NVDEC0: u16 = 11;
const CHIP_SKU: u16 = 15;
const PROJECT: u16 = 17;
const PROJECT_SKU: u16 = 18;
const FWID: u16 = 20;
const PROTECTED_PCIE: u16 = 21;
/// Of a switch: itself. Of a GPU: the switches at its links.
const DEVICE_PDI: u16 = 22;
const SWITCH_LOCK: u16 = 25;
const SWITCH_GPU_PDIS: u16 = 26;
const OPAQUE_VERSION: u16 = 34;
const CHIP_INFO: u16 = 35;
const FEATURE_FLAG: u16 = 36;
