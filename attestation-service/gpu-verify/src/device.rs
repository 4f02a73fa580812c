// SPDX-License-Identifier: Apache-2.0
//! What the certificates of a device say of it: chip, identifier, and the firmware that holds its key.

use der::{
    Decode as _, Sequence,
    asn1::{BitString, ObjectIdentifier, OctetString, Utf8StringRef},
};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use crate::{Architecture, Pdi, certificate::Cert};

/// Facts of a device's two own certificates: that of its boot ROM, and the one that it makes for its firmware.
#[derive(Debug, Clone)]
pub(crate) struct DeviceFacts {
    /// As in the subject of the boot ROM's certificate: `GH100`.
    pub(crate) chip: String,
    pub(crate) architecture: Architecture,
    pub(crate) pdi: Option<Pdi>,
    /// `None` where the leaf has none; an error where it has one that cannot be read.
    pub(crate) firmware: Option<Result<Firmware, String>>,
}

/// Digest of the firmware in the leaf, and the flags beside it.
#[derive(Debug, Clone)]
pub(crate) struct Firmware {
    pub(crate) fwid: [u8; 48],
    /// `OperationalFlags`: notSecure or debug. Absent on older devices.
    pub(crate) insecure: bool,
}

impl DeviceFacts {
    pub(crate) fn read(chain: &[Cert]) -> Self {
        let boot_rom = chain.get(1);
        let name = boot_rom.map(Cert::common_name).unwrap_or_default();
        let chip = name.split(' ').next().unwrap_or_default().to_owned();
        let serial = boot_rom.map(|cert| cert.subject_text(SERIAL_NUMBER)).unwrap_or_default();
        Self {
            architecture: Architecture::of_chip(&chip),
            chip,
            pdi: pdi(&serial),
            firmware: chain.first().and_then(firmware),
        }
    }
}

/// The serial number in the boot ROM's certificate is one byte for the kind of device and its identifier: seen so
/// on all published GPUs and switches, written nowhere.
fn pdi(serial: &str) -> Option<Pdi> {
    let bytes: [u8; 9] = hex::decode(serial).ok()?.try_into().ok()?;
    let [_, rest @ ..] = bytes;
    Some(Pdi(rest))
}

fn firmware(leaf: &Cert) -> Option<Result<Firmware, String>> {
    if let Some(content) = leaf.extension(TCB_INFO) {
        return Some(tcb_info(content));
    }
    leaf.extension(COMPOSITE_DEVICE_ID).map(composite)
}

/// Hopper: TCG-OID 2.23.133.5.4.1 with the `CompositeDeviceID` of Microsoft's "Device Identity with DICE and RIoT".
fn composite(content: &[u8]) -> Result<Firmware, String> {
    let parsed = CompositeDeviceId::from_der(content).map_err(|error| format!("is no CompositeDeviceID: {error}"))?;
    if parsed.version != 1 {
        return Err(format!("has version {}", parsed.version));
    }
    Ok(Firmware { fwid: digest(&parsed.fwid)?, insecure: false })
}

/// Blackwell: `DiceTcbInfo` of the TCG "DICE Attestation Architecture", section 6.1.1. The first digest counts, as in
/// NVIDIA's verifier; the second one is zero on published devices.
fn tcb_info(content: &[u8]) -> Result<Firmware, String> {
    let parsed = DiceTcbInfo::from_der(content).map_err(|error| format!("is no DiceTcbInfo: {error}"))?;
    let fwids = parsed.fwids.unwrap_or_default();
    let first = fwids.first().ok_or("has no FWID")?;
    let flags = parsed.flags.as_ref().and_then(|flags| flags.raw_bytes().first().copied()).unwrap_or(0);
    Ok(Firmware { fwid: digest(first)?, insecure: flags & (NOT_SECURE | DEBUG) != 0 })
}

fn digest(fwid: &Fwid) -> Result<[u8; 48], String> {
    if fwid.algorithm != SHA384 {
        return Err(format!("has a FWID of algorithm {}", fwid.algorithm));
    }
    fwid.digest.as_bytes().try_into().map_err(|_| "has a FWID that is no SHA-384".to_owned())
}

#[derive(Sequence)]
struct CompositeDeviceId {
    version: u8,
    #[allow(dead_code, reason = "read for its form; which key the device has is the certificate's matter")]
    device_id: SubjectPublicKeyInfoOwned,
    fwid: Fwid,
}

#[derive(Sequence)]
struct Fwid {
    algorithm: ObjectIdentifier,
    digest: OctetString,
}

#[derive(Sequence)]
#[asn1(tag_mode = "IMPLICIT")]
#[allow(dead_code, reason = "fields that are read for their form alone")]
struct DiceTcbInfo<'a> {
    #[asn1(context_specific = "0", optional = "true")]
    vendor: Option<Utf8StringRef<'a>>,
    #[asn1(context_specific = "1", optional = "true")]
    model: Option<Utf8StringRef<'a>>,
    #[asn1(context_specific = "2", optional = "true")]
    version: Option<Utf8StringRef<'a>>,
    #[asn1(context_specific = "3", optional = "true")]
    svn: Option<u64>,
    #[asn1(context_specific = "4", optional = "true")]
    layer: Option<u64>,
    #[asn1(context_specific = "5", optional = "true")]
    index: Option<u64>,
    #[asn1(context_specific = "6", optional = "true")]
    fwids: Option<Vec<Fwid>>,
    #[asn1(context_specific = "7", optional = "true")]
    flags: Option<BitString>,
    #[asn1(context_specific = "8", optional = "true")]
    vendor_info: Option<OctetString>,
    #[asn1(context_specific = "9", optional = "true")]
    kind: Option<OctetString>,
}

const SERIAL_NUMBER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.5");
const COMPOSITE_DEVICE_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.5.4.1");
const TCB_INFO: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.5.4.1.1");
const SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
/// Bit 1 of a BIT STRING.
const NOT_SECURE: u8 = 0x40;
/// Bit 3 of a BIT STRING.
const DEBUG: u8 = 0x10;
