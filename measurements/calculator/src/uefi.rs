// SPDX-License-Identifier: Apache-2.0
//! UEFI variables as EDK II measures them, for a firmware whose variable store is empty.
//!
//! Source: TCG PC Client Platform Firmware Profile 1.05 section 10.4.1 (`UEFI_VARIABLE_DATA`); EDK II
//! `OvmfPkg/Tcg/TdTcg2Dxe/TdTcg2Dxe.c`: configuration variables are hashed with their name, boot variables
//! without.

use types::Sha384Digest;

/// Digest of an absent variable: its name with a value of no bytes.
pub(crate) fn absent_variable(vendor: [u8; 16], name: &str) -> Sha384Digest {
    let name = utf16(name);
    let chars = u64::try_from(name.len() / 2).unwrap_or(u64::MAX);
    Sha384Digest::of_parts(&[&vendor, &chars.to_le_bytes(), &0_u64.to_le_bytes(), &name])
}

/// Digest of a separator event.
pub(crate) fn separator() -> Sha384Digest {
    Sha384Digest::of(&[0; 4])
}

/// Digest of `BootOrder` with the only entry 0.
pub(crate) fn boot_order() -> Sha384Digest {
    Sha384Digest::of(&[0, 0])
}

/// Digest of `Boot0000`: the boot manager's menu, which EDK II registers when no boot option exists.
pub(crate) fn boot_0000() -> Sha384Digest {
    let description = utf16("UiApp\0");
    let path = [device_path(4, 7, &OVMF_DXE_VOLUME), device_path(4, 6, &UI_APP), device_path(0x7f, 0xff, &[])].concat();
    let path_len = u16::try_from(path.len()).unwrap_or(u16::MAX);
    Sha384Digest::of_parts(&[&BOOT_MENU_ATTRIBUTES.to_le_bytes(), &path_len.to_le_bytes(), &description, &path])
}

/// UTF-16, little endian, without an added terminator.
pub(crate) fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// `EFI_DEVICE_PATH_PROTOCOL` node: type, subtype, length, data.
fn device_path(kind: u8, subtype: u8, data: &[u8]) -> Vec<u8> {
    let len = u16::try_from(data.len() + 4).unwrap_or(u16::MAX);
    [&[kind, subtype], len.to_le_bytes().as_slice(), data].concat()
}

/// `EFI_GLOBAL_VARIABLE`, 8be4df61-93ca-11d2-aa0d-00e098032b8c.
pub(crate) const GLOBAL_VARIABLE: [u8; 16] =
    [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
/// `EFI_IMAGE_SECURITY_DATABASE_GUID`, d719b2cb-3d3a-4596-a3bc-dad00e67656f.
pub(crate) const IMAGE_SECURITY_DATABASE: [u8; 16] =
    [0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f];
/// Active, hidden, category application.
const BOOT_MENU_ATTRIBUTES: u32 = 0x109;
/// The firmware volume with OVMF's drivers, 7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1.
const OVMF_DXE_VOLUME: [u8; 16] =
    [0xc9, 0xbd, 0xb8, 0x7c, 0xeb, 0xf8, 0x34, 0x4f, 0xaa, 0xea, 0x3e, 0xe4, 0xaf, 0x65, 0x16, 0xa1];
/// `UiApp`, 462caa21-7614-4503-836e-8ab6f4662331.
const UI_APP: [u8; 16] =
    [0x21, 0xaa, 0x2c, 0x46, 0x14, 0x76, 0x03, 0x45, 0x83, 0x6e, 0x8a, 0xb6, 0xf4, 0x66, 0x23, 0x31];
