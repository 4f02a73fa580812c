// SPDX-License-Identifier: Apache-2.0
//! The events of a boot, in the order in which firmware and the kernel's EFI stub log them.
//!
//! Sources: edk2-stable202502 (`OvmfPkg/Sec/SecMain.c`, `OvmfPkg/IntelTdx/TdxHelperLib`, `OvmfPkg/Tcg/TdTcg2Dxe`,
//! `OvmfPkg/Library/AcpiPlatformLib/QemuFwCfgAcpi.c`, `OvmfPkg/Library/X86QemuLoadImageLib`) and Linux
//! `drivers/firmware/efi/libstub/efi-stub-helper.c`. The digests from Secure Boot variables to the end were seen in the log that
//! this firmware writes on a machine with a TPM.

use types::Sha384Digest;

use super::tdvf::Firmware;
use super::{MeasureError, Served, pe};

/// One event of RTMR0, RTMR1 or RTMR2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootEvent {
    /// Index of the register.
    pub rtmr: u32,
    /// Type of the event (TCG PC Client Platform Firmware Profile, section 10.4.1).
    pub kind: u32,
    /// What the register was extended with.
    pub digest: Sha384Digest,
    /// What the log says of it.
    pub data: Vec<u8>,
}

/// All events of RTMR0 to RTMR2.
pub(super) fn events(
    firmware: &Firmware<'_>,
    hand_off: &[u8],
    served: &Served,
) -> Result<Vec<BootEvent>, MeasureError> {
    let mut events = vec![hand_off_event(firmware.hand_off_address()?, hand_off), configuration_event(firmware)?];
    for (guid, name) in SECURE_BOOT_VARIABLES {
        // Absent variables are measured, too: the event's data is its own preimage.
        let data = variable(&guid, name, &[]);
        events.push(BootEvent { rtmr: 0, kind: EV_VARIABLE_DRIVER_CONFIG, digest: Sha384Digest::of(&data), data });
    }
    events.push(separator(0));
    for blob in [&served.loader].into_iter().chain(&served.blobs) {
        let (kind, data) = (EV_PLATFORM_CONFIG_FLAGS, b"ACPI DATA".to_vec());
        events.push(BootEvent { rtmr: 0, kind, digest: Sha384Digest::of(blob), data });
    }
    events.push(kernel_event(&served.kernel)?);
    events.push(boot_variable("BootOrder", &[0, 0]));
    events.push(boot_variable("Boot0000", &boot_option()));
    events.push(action(b"Calling EFI Application from Boot Option"));
    events.push(separator(1));
    events.extend(stub_events(served));
    events.push(action(b"Exit Boot Services Invocation"));
    events.push(action(b"Exit Boot Services Returned with Success"));
    Ok(events)
}

fn hand_off_event(address: u64, hand_off: &[u8]) -> BootEvent {
    let mut data = vec![9];
    data.extend(b"TdxTable\0");
    data.extend(1_u64.to_le_bytes());
    data.extend(OVMF_TOKEN_SPACE);
    data.extend(address.to_le_bytes());
    BootEvent { rtmr: 0, kind: EV_HANDOFF_TABLES2, digest: Sha384Digest::of(hand_off), data }
}

fn configuration_event(firmware: &Firmware<'_>) -> Result<BootEvent, MeasureError> {
    let (address, volume) = firmware.configuration()?;
    let name = b"Fv(XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX)\0";
    let mut data = vec![name.len() as u8];
    data.extend(name);
    data.extend(address.to_le_bytes());
    data.extend((volume.len() as u64).to_le_bytes());
    Ok(BootEvent { rtmr: 0, kind: EV_PLATFORM_FIRMWARE_BLOB2, digest: Sha384Digest::of(volume), data })
}

/// The kernel's image load event. Where the firmware puts it is not known here: the address in the data is zero.
fn kernel_event(kernel: &[u8]) -> Result<BootEvent, MeasureError> {
    let mut path = vec![4, 3, 20, 0];
    path.extend(KERNEL_MEDIA);
    path.extend([4, 4, 18, 0]);
    path.extend(utf16("kernel\0"));
    path.extend(END_OF_PATH);
    let mut data = Vec::new();
    for number in [0, kernel.len() as u64, 0, path.len() as u64] {
        data.extend(number.to_le_bytes());
    }
    data.extend(path);
    Ok(BootEvent { rtmr: 1, kind: EV_BOOT_SERVICES_APPLICATION, digest: pe::authenticode(kernel)?, data })
}

fn boot_variable(name: &str, value: &[u8]) -> BootEvent {
    let data = variable(&GLOBAL_VARIABLE, name, value);
    BootEvent { rtmr: 0, kind: EV_VARIABLE_BOOT, digest: Sha384Digest::of(value), data }
}

/// The only boot option when a kernel is given: the setup application in the firmware's own volume.
fn boot_option() -> Vec<u8> {
    let mut path = vec![4, 7, 20, 0];
    path.extend(DXE_VOLUME);
    path.extend([4, 6, 20, 0]);
    path.extend(UI_APPLICATION);
    path.extend(END_OF_PATH);
    let mut out = LOAD_OPTION_ATTRIBUTES.to_le_bytes().to_vec();
    out.extend((path.len() as u16).to_le_bytes());
    out.extend(utf16("UiApp\0"));
    out.extend(path);
    out
}

/// What the kernel's EFI stub measures before it leaves boot services.
fn stub_events(served: &Served) -> Vec<BootEvent> {
    let mut options: Vec<u8> = served.command_line.iter().flat_map(|byte| [*byte, 0]).collect();
    if !served.initrd.is_empty() {
        options.extend(utf16(" initrd=initrd"));
    }
    let mut events = Vec::new();
    if !options.is_empty() {
        options.extend([0, 0]);
        events.push(tagged(LOAD_OPTIONS_TAG, b"LOADED_IMAGE::LoadOptions\0", &options));
    }
    if !served.initrd.is_empty() {
        events.push(tagged(INITRD_TAG, b"Linux initrd\0", &served.initrd));
    }
    events
}

fn tagged(tag: u32, name: &[u8], measured: &[u8]) -> BootEvent {
    let mut data = tag.to_le_bytes().to_vec();
    data.extend((name.len() as u32).to_le_bytes());
    data.extend(name);
    BootEvent { rtmr: 2, kind: EV_EVENT_TAG, digest: Sha384Digest::of(measured), data }
}

fn separator(rtmr: u32) -> BootEvent {
    BootEvent { rtmr, kind: EV_SEPARATOR, digest: Sha384Digest::of(&[0; 4]), data: vec![0; 4] }
}

fn action(text: &[u8]) -> BootEvent {
    BootEvent { rtmr: 1, kind: EV_ACTION, digest: Sha384Digest::of(text), data: text.to_vec() }
}

/// UEFI_VARIABLE_DATA: GUID, length of the name, length of the value, name without NUL, value.
fn variable(guid: &[u8; 16], name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = guid.to_vec();
    out.extend((name.len() as u64).to_le_bytes());
    out.extend((value.len() as u64).to_le_bytes());
    out.extend(utf16(name));
    out.extend(value);
    out
}

fn utf16(text: &str) -> impl Iterator<Item = u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes)
}

const EV_SEPARATOR: u32 = 4;
const EV_EVENT_TAG: u32 = 6;
const EV_PLATFORM_CONFIG_FLAGS: u32 = 0xa;
const EV_VARIABLE_DRIVER_CONFIG: u32 = 0x8000_0001;
const EV_VARIABLE_BOOT: u32 = 0x8000_0002;
const EV_BOOT_SERVICES_APPLICATION: u32 = 0x8000_0003;
const EV_ACTION: u32 = 0x8000_0007;
const EV_PLATFORM_FIRMWARE_BLOB2: u32 = 0x8000_000a;
const EV_HANDOFF_TABLES2: u32 = 0x8000_000b;
const LOAD_OPTIONS_TAG: u32 = 0x8f3b_22ed;
const INITRD_TAG: u32 = 0x8f3b_22ec;
/// Active, hidden, application.
const LOAD_OPTION_ATTRIBUTES: u32 = 0x109;
const END_OF_PATH: [u8; 4] = [0x7f, 0xff, 4, 0];
const SECURE_BOOT_VARIABLES: [([u8; 16], &str); 5] = [
    (GLOBAL_VARIABLE, "SecureBoot"),
    (GLOBAL_VARIABLE, "PK"),
    (GLOBAL_VARIABLE, "KEK"),
    (IMAGE_SECURITY_DATABASE, "db"),
    (IMAGE_SECURITY_DATABASE, "dbx"),
];
/// 8be4df61-93ca-11d2-aa0d-00e098032b8c
const GLOBAL_VARIABLE: [u8; 16] =
    [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
/// d719b2cb-3d3a-4596-a3bc-dad00e67656f
const IMAGE_SECURITY_DATABASE: [u8; 16] =
    [0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f];
/// 93bb96af-b9f2-4eb8-9462-e0ba74564236
const OVMF_TOKEN_SPACE: [u8; 16] =
    [0xaf, 0x96, 0xbb, 0x93, 0xf2, 0xb9, 0xb8, 0x4e, 0x94, 0x62, 0xe0, 0xba, 0x74, 0x56, 0x42, 0x36];
/// 1428f772-b64a-441e-b8c3-9ebdd7f893c7
const KERNEL_MEDIA: [u8; 16] =
    [0x72, 0xf7, 0x28, 0x14, 0x4a, 0xb6, 0x1e, 0x44, 0xb8, 0xc3, 0x9e, 0xbd, 0xd7, 0xf8, 0x93, 0xc7];
/// 7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1
const DXE_VOLUME: [u8; 16] =
    [0xc9, 0xbd, 0xb8, 0x7c, 0xeb, 0xf8, 0x34, 0x4f, 0xaa, 0xea, 0x3e, 0xe4, 0xaf, 0x65, 0x16, 0xa1];
/// 462caa21-7614-4503-836e-8ab6f4662331
const UI_APPLICATION: [u8; 16] =
    [0x21, 0xaa, 0x2c, 0x46, 0x14, 0x76, 0x03, 0x45, 0x83, 0x6e, 0x8a, 0xb6, 0xf4, 0x66, 0x23, 0x31];
