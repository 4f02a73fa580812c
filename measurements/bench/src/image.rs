// SPDX-License-Identifier: Apache-2.0
//! The files that are measured.

use std::path::Path;

use anyhow::Context as _;
use calculator::{FirmwareGeneration, ImageBytes};
use serde_json::{Value, json};

/// An image's files.
pub(crate) struct Image {
    firmware: Vec<u8>,
    kernel: Vec<u8>,
    initrd: Vec<u8>,
    command_line: String,
    origin: &'static str,
}

impl Image {
    /// Reads a built image.
    pub(crate) fn read(directory: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read(&path).with_context(|| path.display().to_string())
        };
        let command_line = String::from_utf8(read("cmdline")?).context("cmdline")?;
        Ok(Self {
            firmware: read("firmware.fd")?,
            kernel: read("vmlinuz")?,
            initrd: read("initrd")?,
            command_line: command_line.trim_end_matches('\n').to_owned(),
            origin: "built image",
        })
    }

    /// Files of the sizes that an image has: firmware of 4 MiB, 3 MiB of kernel, 20 MiB of initrd.
    pub(crate) fn made_up() -> Self {
        Self::made_up_of(1 << 20)
    }

    /// The same with `unit` bytes in the place of each MiB, a multiple of 4,096.
    pub(crate) fn made_up_of(unit: usize) -> Self {
        let mut kernel = sample_release::files::kernel();
        kernel.resize(3 * unit, 0x90);
        Self {
            firmware: sample_release::files::firmware(),
            kernel,
            initrd: vec![7; 20 * unit],
            command_line: sample_release::COMMAND_LINE.to_owned(),
            origin: "made-up files",
        }
    }

    pub(crate) fn bytes(&self) -> ImageBytes<'_> {
        ImageBytes {
            firmware: &self.firmware,
            generation: FirmwareGeneration::Edk2Stable202502,
            kernel: &self.kernel,
            initrd: &self.initrd,
            command_line: &self.command_line,
        }
    }

    /// What was measured, without paths.
    pub(crate) fn document(&self) -> Value {
        json!({
            "origin": self.origin, "firmware_bytes": self.firmware.len(), "kernel_bytes": self.kernel.len(),
            "initrd_bytes": self.initrd.len(),
        })
    }

    /// Bytes that SHA-384 must see at least: the kernel and the initrd once, the firmware's volumes once, and MRTD
    /// for both page orders, where each 256 bytes have a record of 128 and each page one more.
    pub(crate) fn hashed_bytes(&self) -> anyhow::Result<usize> {
        let tdvf = tdx_spec::Tdvf::parse(&self.firmware).context("firmware")?;
        let mut bytes = self.kernel.len() + self.initrd.len();
        for section in tdvf.sections() {
            let (raw, memory) = (usize::try_from(section.raw_len)?, usize::try_from(section.memory_len)?);
            let records = if section.augmented() { 0 } else { memory / 4096 * 128 };
            let contents = if section.extends() { raw / 2 * 3 } else { 0 };
            bytes += 2 * (records + contents);
            bytes += if section.kind == tdx_spec::SectionKind::Cfv { raw } else { 0 };
        }
        Ok(bytes)
    }
}
