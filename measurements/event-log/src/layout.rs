// SPDX-License-Identifier: Apache-2.0
//! Layouts of event data, read for display. Every length in them is untrusted.

use core::fmt::Write as _;

use tdx_spec::{Cursor, ReadError};

use crate::label::{Kind, MAX_LABEL, escaped, trimmed};

/// `UEFI_VARIABLE_DATA`.
pub(crate) struct Variable<'a> {
    vendor: [u8; 16],
    /// Escaped.
    pub(crate) name: String,
    pub(crate) value: &'a [u8],
}

pub(crate) fn variable(data: &[u8]) -> Result<Variable<'_>, ReadError> {
    let mut cursor = Cursor::new(data);
    let vendor = cursor.array("vendor")?;
    let name_len = cursor.u64("length of the name")?;
    let value_len = cursor.u64("length of the value")?;
    let name = cursor.slice("name", usize::try_from(name_len).unwrap_or(usize::MAX).saturating_mul(2))?;
    let value = cursor.slice("value", usize::try_from(value_len).unwrap_or(usize::MAX))?;
    cursor.finish()?;
    Ok(Variable { vendor, name: cap(utf16_lossy(name)), value })
}

impl Variable<'_> {
    pub(crate) fn describe(&self) -> String {
        let Self { vendor, name, value } = self;
        let value = match (name.as_str(), *value) {
            (_, []) => "absent or empty".to_owned(),
            ("SecureBoot", [0]) => "off".to_owned(),
            ("SecureBoot", [1]) => "on".to_owned(),
            ("BootOrder", list) => {
                let words = list.chunks_exact(2).take(16).map(|pair| match pair {
                    [low, high] => format!("{:04X}", u16::from_le_bytes([*low, *high])),
                    _ => String::new(),
                });
                words.collect::<Vec<_>>().join(", ")
            }
            (name, value) if is_boot_option(name) => {
                load_option(value).unwrap_or_else(|_| format!("{} bytes", value.len()))
            }
            (_, value) => format!("{} bytes", value.len()),
        };
        if *vendor == GLOBAL_VARIABLE || *vendor == IMAGE_SECURITY_DATABASE {
            cap(format!("{name}: {value}").chars())
        } else {
            cap(format!("{name} ({}): {value}", guid(vendor)).chars())
        }
    }
}

fn is_boot_option(name: &str) -> bool {
    name.strip_prefix("Boot").is_some_and(|rest| rest.len() == 4 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// `EFI_LOAD_OPTION`: attributes, length of the device path, description, device path.
fn load_option(value: &[u8]) -> Result<String, ReadError> {
    let mut cursor = Cursor::new(value);
    cursor.skip("attributes and length", 6)?;
    let rest = cursor.rest();
    let description: Vec<u8> =
        rest.chunks_exact(2).take_while(|pair| **pair != [0, 0]).take(MAX_LABEL).flatten().copied().collect();
    cursor.skip("description", description.len().saturating_add(2))?;
    Ok(format!("{} {}", cap(utf16_lossy(&description)), device_path(cursor.rest())))
}

/// `UEFI_IMAGE_LOAD_EVENT`.
pub(crate) fn image(data: &[u8]) -> Result<String, ReadError> {
    let mut cursor = Cursor::new(data);
    cursor.skip("location", 8)?;
    let len = cursor.u64("length")?;
    cursor.skip("link time address", 8)?;
    let path_len = cursor.u64("length of the device path")?;
    let path = cursor.slice("device path", usize::try_from(path_len).unwrap_or(usize::MAX))?;
    cursor.finish()?;
    Ok(cap(format!("{} ({len} bytes)", device_path(path)).chars()))
}

/// `EFI_DEVICE_PATH_PROTOCOL`: the nodes that name something, at most sixteen.
fn device_path(bytes: &[u8]) -> String {
    let mut cursor = Cursor::new(bytes);
    let mut text = String::new();
    for _ in 0..MAX_NODES {
        let Ok([kind, subtype]) = cursor.array::<2>("type") else { break };
        let len = usize::from(cursor.u16("length").unwrap_or(0));
        let Ok(data) = cursor.slice("node", len.saturating_sub(4)) else { break };
        let node = match (kind, subtype) {
            (0x7f, _) => break,
            (4, 4) => cap(utf16_lossy(data)),
            (4, 3 | 6 | 7) => data.first_chunk::<16>().map_or_else(String::new, guid),
            (1, 1) => "Pci".to_owned(),
            (2, 1) => "Acpi".to_owned(),
            (4, 1) => "HardDrive".to_owned(),
            (3, _) => format!("Messaging({subtype})"),
            _ => format!("Node({kind},{subtype})"),
        };
        // Writing to a string cannot fail.
        let _ = write!(text, "{}{node}", if text.is_empty() { "" } else { "/" });
    }
    text
}

/// `TCG_PCClientTaggedEvent`.
pub(crate) fn tagged(data: &[u8]) -> Result<(Kind, String), ReadError> {
    let mut cursor = Cursor::new(data);
    let tag = cursor.u32("tag")?;
    let len = cursor.u32("length")?;
    let text = cursor.slice("text", usize::try_from(len).unwrap_or(usize::MAX))?;
    cursor.finish()?;
    let kind = match tag {
        LOAD_OPTIONS_TAG => Kind::LoadOptions,
        INITRD_TAG => Kind::Initrd,
        _ => Kind::Other,
    };
    Ok((kind, escaped(trimmed(text))))
}

pub(crate) fn firmware_blob(data: &[u8]) -> Result<String, ReadError> {
    let mut cursor = Cursor::new(data);
    let len = usize::from(cursor.u8("length of the description")?);
    let name = cursor.slice("description", len)?;
    let base = cursor.u64("base")?;
    let len = cursor.u64("length")?;
    cursor.finish()?;
    Ok(format!("{} at {base:#x}, {len} bytes", escaped(trimmed(name))))
}

pub(crate) fn handoff_tables(data: &[u8]) -> Result<String, ReadError> {
    let mut cursor = Cursor::new(data);
    let len = usize::from(cursor.u8("length of the description")?);
    Ok(escaped(trimmed(cursor.slice("description", len)?)))
}

pub(crate) fn utf16_lossy(data: &[u8]) -> impl Iterator<Item = char> {
    let words = data.chunks_exact(2).map(|pair| match pair {
        [low, high] => u16::from_le_bytes([*low, *high]),
        _ => 0,
    });
    char::decode_utf16(words).map(|c| c.unwrap_or('\u{fffd}')).filter(|c| *c != '\0')
}

pub(crate) fn cap(characters: impl Iterator<Item = char>) -> String {
    let mut text = String::new();
    for character in characters {
        if text.len() > MAX_LABEL - CUT.len() - 10 {
            text.push_str(CUT);
            break;
        }
        match character {
            ' '..='~' => text.push(character),
            other if u32::from(other) < 0x100 => {
                let _ = write!(text, "\\x{:02x}", u32::from(other));
            }
            other => {
                let _ = write!(text, "\\u{{{:x}}}", u32::from(other));
            }
        }
    }
    text
}

pub(crate) fn hex_prefix(data: &[u8]) -> String {
    let mut text = String::new();
    for byte in data.iter().take(16) {
        let _ = write!(text, "{byte:02x}");
    }
    if data.len() > 16 {
        let _ = write!(text, "... ({} bytes)", data.len());
    }
    text
}

/// A GUID as text: the first three fields are little endian.
fn guid(bytes: &[u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
    let mut text = format!(
        "{:08x}-{:04x}-{:04x}-",
        u32::from_le_bytes([*a, *b, *c, *d]),
        u16::from_le_bytes([*e, *f]),
        u16::from_le_bytes([*g, *h])
    );
    for (index, byte) in rest.iter().enumerate() {
        let _ = write!(text, "{}{byte:02x}", if index == 2 { "-" } else { "" });
    }
    text
}

const CUT: &str = "...";
const MAX_NODES: usize = 16;
/// `LOAD_OPTIONS_EVENT_TAG_ID` of Linux's EFI stub.
const LOAD_OPTIONS_TAG: u32 = 0x8f3b_22ed;
/// `INITRD_EVENT_TAG_ID` of Linux's EFI stub.
const INITRD_TAG: u32 = 0x8f3b_22ec;
/// `EFI_GLOBAL_VARIABLE`, 8be4df61-93ca-11d2-aa0d-00e098032b8c.
pub(crate) const GLOBAL_VARIABLE: [u8; 16] =
    [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
/// `EFI_IMAGE_SECURITY_DATABASE_GUID`, d719b2cb-3d3a-4596-a3bc-dad00e67656f.
const IMAGE_SECURITY_DATABASE: [u8; 16] =
    [0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f];
