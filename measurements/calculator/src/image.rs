// SPDX-License-Identifier: Apache-2.0
//! Measures the files of an image once.

use serde::{Deserialize, Serialize};
use types::Sha384Digest;

use crate::{
    firmware::{FirmwareError, FirmwareGeneration, FirmwareMeasurements, InitrdWord},
    kernel::{KernelError, KernelMeasurements},
    uefi,
};

/// The files of an image.
#[derive(Debug, Clone, Copy)]
pub struct ImageBytes<'a> {
    /// The firmware file (TDVF).
    pub firmware: &'a [u8],
    /// Which firmware source it was built from.
    pub generation: FirmwareGeneration,
    /// The kernel file (bzImage with EFI stub).
    pub kernel: &'a [u8],
    /// The initrd file.
    pub initrd: &'a [u8],
    /// The command line as QEMU gets it.
    pub command_line: &'a str,
}

/// All that a verifier needs to know about an image to compute its registers for any machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageMeasurements {
    /// The firmware.
    pub firmware: FirmwareMeasurements,
    /// The kernel.
    pub kernel: KernelMeasurements,
    /// SHA-384 of the initrd.
    pub initrd: Sha384Digest,
    /// The command line.
    pub command_line: String,
}

/// Why an image cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The firmware.
    #[error("firmware: {0}")]
    Firmware(#[from] FirmwareError),
    /// The kernel.
    #[error("kernel: {0}")]
    Kernel(#[from] KernelError),
    /// The initrd has no bytes.
    #[error("the initrd is empty")]
    EmptyInitrd,
    /// The command line.
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
}

/// Why a command line was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommandLineError {
    /// More than 2,047 bytes: Linux would cut it.
    #[error("the command line has more than {MAX_COMMAND_LINE} bytes")]
    TooLong,
    /// Empty, or a character outside of printable ASCII.
    #[error("the command line must be printable ASCII, and not empty")]
    NotPrintable,
    /// The word `vga=`, which QEMU interprets itself and writes into the kernel.
    #[error("the command line must not contain vga=, which QEMU takes for itself")]
    Vga,
}

impl ImageMeasurements {
    /// Measures an image. `memory_mib` lists the machines for which patched kernels are wanted (see
    /// [`KernelMeasurements`]); it may be empty when only QEMU 10.0 and later will be used.
    ///
    /// # Errors
    /// [`ImageError`] names the part.
    pub fn of(image: &ImageBytes<'_>, memory_mib: &[u32]) -> Result<Self, ImageError> {
        let ImageBytes { firmware, generation, kernel, initrd, command_line } = image;
        if initrd.is_empty() {
            return Err(ImageError::EmptyInitrd);
        }
        check_command_line(command_line)?;
        let initrd_len = u64::try_from(initrd.len()).unwrap_or(u64::MAX);
        Ok(Self {
            firmware: FirmwareMeasurements::of(firmware, *generation)?,
            kernel: KernelMeasurements::of(kernel, initrd_len, memory_mib)?,
            initrd: Sha384Digest::of(initrd),
            command_line: (*command_line).to_owned(),
        })
    }
}

/// The load options that the firmware gives to the kernel, which the kernel's EFI stub measures: the command
/// line with `initrd=initrd` added, as UTF-16 little endian with a terminator.
///
/// Source: EDK II `OvmfPkg/Library/X86QemuLoadImageLib`; Linux `drivers/firmware/efi/libstub`.
///
/// # Errors
/// [`CommandLineError`] names the rule.
pub fn load_options(command_line: &str, word: InitrdWord) -> Result<Vec<u8>, CommandLineError> {
    check_command_line(command_line)?;
    Ok(uefi::utf16(&match word {
        InitrdWord::Before => format!("initrd=initrd {command_line}\0"),
        InitrdWord::After => format!("{command_line} initrd=initrd\0"),
    }))
}

fn check_command_line(command_line: &str) -> Result<(), CommandLineError> {
    if command_line.len() > MAX_COMMAND_LINE {
        return Err(CommandLineError::TooLong);
    }
    if command_line.is_empty() || !command_line.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Err(CommandLineError::NotPrintable);
    }
    if command_line.contains("vga=") {
        return Err(CommandLineError::Vga);
    }
    Ok(())
}

/// Linux's `COMMAND_LINE_SIZE` on x86, less the terminator.
const MAX_COMMAND_LINE: usize = 2047;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_options_follow_the_firmware() {
        let text = |word| {
            let bytes = load_options("a b", word).unwrap();
            String::from_utf16(&bytes.chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect::<Vec<_>>()).unwrap()
        };
        assert_eq!(text(InitrdWord::After), "a b initrd=initrd\0");
        assert_eq!(text(InitrdWord::Before), "initrd=initrd a b\0");
    }

    #[test]
    fn odd_command_lines_are_refused() {
        let refuse = |line: &str| check_command_line(line).unwrap_err();
        assert_eq!(refuse(""), CommandLineError::NotPrintable);
        assert_eq!(refuse("a\nb"), CommandLineError::NotPrintable);
        assert_eq!(refuse("é"), CommandLineError::NotPrintable);
        assert_eq!(refuse("quiet vga=ask"), CommandLineError::Vga);
        assert_eq!(refuse(&"x".repeat(2048)), CommandLineError::TooLong);
    }
}
