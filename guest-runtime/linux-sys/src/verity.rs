// SPDX-License-Identifier: Apache-2.0
//! A disk of the host's that is read through dm-verity: each block is compared with a measured root hash before anybody sees a
//! byte of it (Linux `Documentation/admin-guide/device-mapper/verity.rst`).
//!
//! It establishes that the bytes are those of the image. It does not establish that the host goes on giving them.

use std::{fs, path::PathBuf, str::FromStr};

use crate::{
    SysError,
    block::{self, BlockError},
    device_mapper::{Mapper, Target},
};

/// What the measured command line says of a verified disk: `ROOT_HASH:SALT:DATA_BLOCKS`.
///
/// Blocks of data and of hashes are 4096 bytes; the tree (format 1, SHA-256, no superblock) follows the data directly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerityRoot {
    root_hash: [u8; 32],
    salt: [u8; 32],
    data_blocks: u64,
}

/// The text is no description of a verified disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a verified disk is 64 lower-case hex digits, 64 more, and a number of blocks from 1 to 2^28, separated by colons"
)]
pub struct ParseError;

/// Why a disk is not readable through its hashes.
#[derive(Debug, thiserror::Error)]
pub enum VerityError {
    /// The disk.
    #[error(transparent)]
    Disk(#[from] BlockError),
    /// A system call failed. A disk that is too short for its data or its tree ends here.
    #[error(transparent)]
    Sys(#[from] SysError),
}

impl FromStr for VerityRoot {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut parts = text.split(':');
        let (Some(root_hash), Some(salt), Some(blocks), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ParseError);
        };
        let data_blocks: u64 = blocks.parse().map_err(|_| ParseError)?;
        let parsed = Self { root_hash: bytes(root_hash)?, salt: bytes(salt)?, data_blocks };
        let one_spelling = data_blocks.to_string() == blocks;
        if one_spelling && (1..=MAX_DATA_BLOCKS).contains(&data_blocks) { Ok(parsed) } else { Err(ParseError) }
    }
}

impl VerityRoot {
    /// Opens the only disk whose serial is `serial` and gives the path of the device that verifies it. A block that does not
    /// match its hash, or cannot be read, panics the kernel, whenever that is.
    ///
    /// # Errors
    /// [`VerityError`].
    pub fn open(&self, serial: &str) -> Result<PathBuf, VerityError> {
        let name = block::name_by_serial(serial)?;
        let number = fs::read_to_string(PathBuf::from("/sys/class/block").join(name).join("dev"))
            .map_err(SysError::when("read a disk's number"))?;
        let sectors = self.data_blocks.saturating_mul(BLOCK / SECTOR);
        let target = Target { kind: "verity", sectors, parameters: &self.parameters(number.trim_end()) };
        Ok(Mapper::open()?.read_only(NAME, &target)?)
    }

    fn parameters(&self, disk: &str) -> String {
        let Self { root_hash, salt, data_blocks } = self;
        let (root_hash, salt) = (hex(root_hash), hex(salt));
        // Version, disk of the data, disk of the hashes, both block sizes, blocks, first block of hashes, algorithm, root hash,
        // salt, number of options, options.
        format!(
            "1 {disk} {disk} {BLOCK} {BLOCK} {data_blocks} {data_blocks} sha256 {root_hash} {salt} 2 panic_on_corruption panic_on_error"
        )
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bytes(digits: &str) -> Result<[u8; 32], ParseError> {
    let lower = |digit: u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    if digits.len() != 64 || !digits.bytes().all(lower) {
        return Err(ParseError);
    }
    let mut out = [0; 32];
    for (index, byte) in out.iter_mut().enumerate() {
        let pair = digits.get(index.saturating_mul(2)..).and_then(|rest| rest.get(..2)).ok_or(ParseError)?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| ParseError)?;
    }
    Ok(out)
}

/// The mapped device's name; a guest has one.
const NAME: &str = "gpu-root";
const BLOCK: u64 = 4096;
const SECTOR: u64 = 512;
/// A tebibyte.
const MAX_DATA_BLOCKS: u64 = 1 << 28;

#[cfg(test)]
mod tests {
    use super::*;

    fn line(blocks: &str) -> String {
        format!("{}:{}:{blocks}", "0f".repeat(32), "a1".repeat(32))
    }

    #[test]
    fn the_kernel_is_told_what_the_command_line_says() {
        let root: VerityRoot = line("300").parse().unwrap();
        assert_eq!(
            root.parameters("254:16"),
            format!(
                "1 254:16 254:16 4096 4096 300 300 sha256 {} {} 2 panic_on_corruption panic_on_error",
                "0f".repeat(32),
                "a1".repeat(32)
            )
        );
    }

    #[test]
    fn anything_but_the_one_spelling_is_refused() {
        assert!(line("1").parse::<VerityRoot>().is_ok() && line("268435456").parse::<VerityRoot>().is_ok());
        for blocks in ["0", "01", "+1", "", "1 ", "-1", "268435457", "99999999999999999999", "1:", "1:2", "0x10"] {
            assert_eq!(line(blocks).parse::<VerityRoot>(), Err(ParseError), "{blocks}");
        }
        let (hash, salt) = ("0f".repeat(32), "a1".repeat(32));
        for text in [
            String::new(),
            format!("{hash}:{salt}"),
            format!("{hash}::1"),
            format!("{hash}:-:1"),
            format!("{}:{salt}:1", &hash[2..]),
            format!("{hash}0:{salt}:1"),
            format!("{}:{salt}:1", hash.to_uppercase()),
            format!("{}g:{salt}:1", &hash[1..]),
            format!("{hash}:{}+1:1", &salt[2..]),
        ] {
            assert_eq!(text.parse::<VerityRoot>(), Err(ParseError), "{text}");
        }
    }
}
