// SPDX-License-Identifier: Apache-2.0
//! What an event's data says, for people, and whether its digest covers it.
//!
//! Firmware writes data beside digests, and nothing ties the two together: whoever hands a log over can write
//! what he likes there. So a label is text to show, never a fact to decide by, unless [`Binding`] says that the
//! digest is a hash of it. Labels are capped and escaped: they hold printable ASCII only.
//!
//! Source of the layouts: TCG PC Client Platform Firmware Profile 1.05, section 10.2 and 10.4; UEFI
//! Specification 2.10, chapter 10 (device paths) and section 3.1.3 (load options); Linux
//! `drivers/firmware/efi/libstub/efi-stub-helper.c` for the tags of the EFI stub; GRUB `grub-core/commands/tpm.c`.

use tdx_spec::ReadError;
use types::Sha384Digest;

use crate::{
    layout::{cap, firmware_blob, handoff_tables, hex_prefix, image, tagged, variable},
    tcg::Event,
};

/// What an event claims to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// What kind of thing was measured, as far as type and data tell.
    pub kind: Kind,
    /// The data in words: printable ASCII, at most [`MAX_LABEL`] characters.
    pub text: String,
}

/// Kinds of events that a direct boot of Linux by OVMF has, and some others that are common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The TD HOB (`EV_EFI_HANDOFF_TABLES2`).
    HandoffTables,
    /// A firmware volume.
    FirmwareBlob,
    /// A UEFI variable of the Secure Boot configuration, by name.
    ConfigurationVariable(String),
    /// A boot variable, by name.
    BootVariable(String),
    /// A key that an image was verified with.
    Authority,
    /// A separator.
    Separator,
    /// A platform configuration blob: OVMF logs the ACPI files of QEMU so.
    PlatformConfiguration,
    /// A PE image that was loaded: the kernel in a direct boot.
    Image,
    /// A text that is measured itself.
    Action,
    /// The load options of a Linux kernel: its command line.
    LoadOptions,
    /// The initrd, as the kernel's EFI stub measures it.
    Initrd,
    /// What a boot loader measures: commands, or files by name.
    BootLoader,
    /// A partition table.
    PartitionTable,
    /// Anything else.
    Other,
}

/// What ties an event's data to its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// The digest is SHA-384 of all the data.
    Data,
    /// The digest is SHA-384 of the variable's value, without its name.
    VariableValue,
    /// The digest is SHA-384 of the text, without a prefix that ends with `: ` and without the terminator.
    Text,
    /// The digest is of something that the log does not hold: the data is only somebody's word.
    Nothing,
}

impl Event<'_> {
    /// The event in words. The data is an untrusted label unless [`Event::binding`] says otherwise.
    #[must_use]
    pub fn label(&self) -> Label {
        let label = read_label(self.event_type, self.data);
        label.unwrap_or_else(|_| Label { kind: Kind::Other, text: format!("malformed: {}", hex_prefix(self.data)) })
    }

    /// Which part of the data the digest covers. Hashes the data at most three times.
    #[must_use]
    pub fn binding(&self) -> Binding {
        let Some(digest) = self.sha384() else { return Binding::Nothing };
        if Sha384Digest::of(self.data) == digest {
            return Binding::Data;
        }
        if matches!(self.event_type, VARIABLE_BOOT | VARIABLE_BOOT2)
            && variable(self.data).is_ok_and(|variable| Sha384Digest::of(variable.value) == digest)
        {
            return Binding::VariableValue;
        }
        if self.event_type == IPL && loader_text(self.data).iter().any(|text| Sha384Digest::of(text) == digest) {
            return Binding::Text;
        }
        Binding::Nothing
    }

    /// The kernel's command line as the log itself gives it, when the digest covers that text: the data of a
    /// `LoadOptions` event (UTF-16) or the text that a boot loader measured. `None` when the log holds no such
    /// text, which is usual: Linux logs only a tag.
    #[must_use]
    pub fn command_line(&self) -> Option<String> {
        match self.binding() {
            Binding::Data if self.event_type == EVENT_TAG || self.event_type == IPL => utf16_text(self.data),
            Binding::Text => {
                let text = self.data.strip_prefix(b"kernel_cmdline: ")?;
                String::from_utf8(trimmed(text).to_vec()).ok()
            }
            Binding::Data | Binding::VariableValue | Binding::Nothing => None,
        }
    }
}

impl Binding {
    /// True when a digest covers the data, or the part of it that matters.
    #[must_use]
    pub const fn matches(self) -> bool {
        !matches!(self, Self::Nothing)
    }
}

/// Makes untrusted bytes printable: ASCII stays, everything else is written as `\xNN`; the result has at most
/// [`MAX_LABEL`] characters, the last of which tell that something was left out.
#[must_use]
pub fn escaped(bytes: &[u8]) -> String {
    cap(bytes.iter().map(|byte| char::from(*byte)))
}

fn read_label(event_type: u32, data: &[u8]) -> Result<Label, ReadError> {
    let (kind, text) = match event_type {
        HANDOFF_TABLES => (Kind::HandoffTables, hex_prefix(data)),
        HANDOFF_TABLES2 => (Kind::HandoffTables, handoff_tables(data)?),
        FIRMWARE_BLOB2 => (Kind::FirmwareBlob, firmware_blob(data)?),
        VARIABLE_DRIVER_CONFIG => {
            let variable = variable(data)?;
            (Kind::ConfigurationVariable(variable.name.clone()), variable.describe())
        }
        VARIABLE_BOOT | VARIABLE_BOOT2 => {
            let variable = variable(data)?;
            (Kind::BootVariable(variable.name.clone()), variable.describe())
        }
        VARIABLE_AUTHORITY => (Kind::Authority, variable(data)?.describe()),
        SEPARATOR => (Kind::Separator, format!("separator {}", hex_prefix(data))),
        ACTION | EFI_ACTION => (Kind::Action, escaped(data)),
        PLATFORM_CONFIG_FLAGS => (Kind::PlatformConfiguration, escaped(data)),
        BOOT_SERVICES_APPLICATION | BOOT_SERVICES_DRIVER | RUNTIME_SERVICES_DRIVER => (Kind::Image, image(data)?),
        EVENT_TAG => tagged(data)?,
        IPL => (Kind::BootLoader, utf16_text(data).map_or_else(|| escaped(trimmed(data)), |t| cap(t.chars()))),
        GPT => (Kind::PartitionTable, "partition table".to_owned()),
        _ => (Kind::Other, hex_prefix(data)),
    };
    // Parts are capped each; together they may still be too long.
    Ok(Label { kind, text: cap(text.chars()) })
}

/// The texts that a boot loader may have hashed: without the terminator, and then without its prefix.
fn loader_text(data: &[u8]) -> Vec<&[u8]> {
    let text = trimmed(data);
    let mut texts = vec![text];
    if let Some(at) = text.windows(2).take(64).position(|pair| pair == b": ") {
        texts.extend(text.get(at.saturating_add(2)..));
    }
    texts
}

/// Without what follows the first NUL.
pub(crate) fn trimmed(data: &[u8]) -> &[u8] {
    data.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// UTF-16 text that is ASCII; `None` for anything else.
fn utf16_text(data: &[u8]) -> Option<String> {
    let (pairs, []) = data.as_chunks::<2>() else { return None };
    let pairs = pairs.strip_suffix(&[[0, 0]]).unwrap_or(pairs);
    let ascii = |pair: &[u8; 2]| match pair {
        [low @ 0x20..0x7f, 0] => Some(char::from(*low)),
        _ => None,
    };
    if pairs.is_empty() { None } else { pairs.iter().map(ascii).collect() }
}

/// Most characters of a label.
pub const MAX_LABEL: usize = 240;
const SEPARATOR: u32 = 0x4;
const ACTION: u32 = 0x5;
const EVENT_TAG: u32 = 0x6;
const PLATFORM_CONFIG_FLAGS: u32 = 0xa;
const IPL: u32 = 0xd;
const VARIABLE_DRIVER_CONFIG: u32 = 0x8000_0001;
const VARIABLE_BOOT: u32 = 0x8000_0002;
const BOOT_SERVICES_APPLICATION: u32 = 0x8000_0003;
const BOOT_SERVICES_DRIVER: u32 = 0x8000_0004;
const RUNTIME_SERVICES_DRIVER: u32 = 0x8000_0005;
const GPT: u32 = 0x8000_0006;
const EFI_ACTION: u32 = 0x8000_0007;
const HANDOFF_TABLES: u32 = 0x8000_0009;
const FIRMWARE_BLOB2: u32 = 0x8000_000a;
const HANDOFF_TABLES2: u32 = 0x8000_000b;
const VARIABLE_BOOT2: u32 = 0x8000_000c;
const VARIABLE_AUTHORITY: u32 = 0x8000_00e0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{layout::GLOBAL_VARIABLE, tcg::ALG_SHA384};

    fn with_event<T>(event_type: u32, digest: &Sha384Digest, data: &[u8], test: impl FnOnce(&Event<'_>) -> T) -> T {
        test(&Event { index: 1, event_type, digests: vec![(ALG_SHA384, digest.as_bytes())], data })
    }

    fn label(event_type: u32, data: &[u8]) -> Label {
        with_event(event_type, &Sha384Digest::ZERO, data, |event| event.label())
    }

    fn variable_data(name: &str, value: &[u8]) -> Vec<u8> {
        let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let lengths = [(name.len() / 2) as u64, value.len() as u64].map(u64::to_le_bytes).concat();
        [&GLOBAL_VARIABLE[..], &lengths, &name, value].concat()
    }

    #[test]
    fn variables_are_named_and_bound_by_their_value_or_by_everything() {
        let data = variable_data("BootOrder", &[1, 0, 0, 0]);
        assert_eq!(
            label(VARIABLE_BOOT, &data),
            Label { kind: Kind::BootVariable("BootOrder".into()), text: "BootOrder: 0001, 0000".into() }
        );
        let binding =
            |event_type, digest: Sha384Digest| with_event(event_type, &digest, &data, |event| event.binding());
        assert_eq!(binding(VARIABLE_BOOT, Sha384Digest::of(&data)), Binding::Data);
        assert_eq!(binding(VARIABLE_BOOT, Sha384Digest::of(&[1, 0, 0, 0])), Binding::VariableValue);
        assert_eq!(binding(VARIABLE_DRIVER_CONFIG, Sha384Digest::of(&[1, 0, 0, 0])), Binding::Nothing);
        assert_eq!(label(VARIABLE_DRIVER_CONFIG, &variable_data("SecureBoot", &[1])).text, "SecureBoot: on");
        assert_eq!(label(VARIABLE_DRIVER_CONFIG, &variable_data("PK", &[])).text, "PK: absent or empty");
    }

    #[test]
    fn lying_lengths_are_no_label() {
        let mut data = variable_data("PK", &[1, 2]);
        for (at, value) in [(16, 0xff), (23, 0xff), (24, 3), (31, 0x80)] {
            let good = core::mem::replace(&mut data[at], value);
            let label = label(VARIABLE_DRIVER_CONFIG, &data);
            assert!(label.kind == Kind::Other && label.text.starts_with("malformed"), "{label:?}");
            data[at] = good;
        }
        assert_eq!(label(EVENT_TAG, &[0xed, 0x22, 0x3b, 0x8f, 0xff, 0xff, 0xff, 0xff, b'x']).kind, Kind::Other);
    }

    #[test]
    fn labels_hold_printable_ascii_of_limited_length() {
        assert_eq!(label(ACTION, b"a\x1b[31mb\n\xff").text, "a\\x1b[31mb\\x0a\\xff");
        for event_type in (0..0x20).chain(0x8000_0000..0x8000_0010).chain([VARIABLE_AUTHORITY]) {
            for data in
                [vec![0xff; 100_000], vec![b'x'; 100_000], vec![0; 100_000], variable_data(&"é".repeat(4000), &[1; 9])]
            {
                let text = label(event_type, &data).text;
                assert!(text.len() <= MAX_LABEL && text.bytes().all(|b| (b' '..=b'~').contains(&b)), "{text}");
            }
        }
    }

    #[test]
    fn images_are_named_by_their_device_path() {
        let path = [&[4, 3, 20, 0][..], &[0x11; 16], &[4, 4, 10, 0, b'k', 0, b'r', 0, 0, 0, 0x7f, 0xff, 4, 0]].concat();
        let numbers = [0, 77, 0, path.len() as u64].map(u64::to_le_bytes).concat();
        let label = label(BOOT_SERVICES_APPLICATION, &[numbers, path].concat());
        assert_eq!(label.kind, Kind::Image);
        assert_eq!(label.text, "11111111-1111-1111-1111-111111111111/kr (77 bytes)");
    }

    #[test]
    fn a_command_line_is_taken_from_a_log_only_if_the_digest_covers_it() {
        let of = |event_type, digest: &[u8], data: &[u8]| {
            with_event(event_type, &Sha384Digest::of(digest), data, |event| event.command_line())
        };
        let grub = b"kernel_cmdline: /vmlinuz ro quiet\0";
        assert_eq!(of(IPL, b"/vmlinuz ro quiet", grub).as_deref(), Some("/vmlinuz ro quiet"));
        assert_eq!(of(IPL, b"/vmlinuz ro", grub), None);
        let wide: Vec<u8> = "ro quiet\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(of(EVENT_TAG, &wide, &wide).as_deref(), Some("ro quiet"));
        assert_eq!(of(EVENT_TAG, b"other", &wide), None);
        let stub = b"\xed\x22\x3b\x8f\x1a\0\0\0LOADED_IMAGE::LoadOptions\0";
        assert_eq!(of(EVENT_TAG, &wide, stub), None, "Linux logs a tag, not the text");
        assert_eq!(label(EVENT_TAG, stub).kind, Kind::LoadOptions);
    }
}
