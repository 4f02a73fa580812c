// SPDX-License-Identifier: Apache-2.0
//! The initial RAM disk is one zstd frame (RFC 8878): programs share libraries, which a long window folds into one.
//!
//! The bytes depend on the input, the settings below and the library's version, which `Cargo.lock` pins: one thread, and
//! nothing of the machine. The kernel unpacks it only after firmware and EFI stub have measured it.

use std::io::{self, Read as _, Write as _};

/// Compresses.
///
/// # Errors
/// Those of the library, which has none for input in memory but want of memory.
pub(crate) fn compress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL)?;
    encoder.set_pledged_src_size(u64::try_from(bytes.len()).ok())?;
    encoder.include_checksum(true)?;
    encoder.long_distance_matching(true)?;
    encoder.window_log(WINDOW_LOG)?;
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// The content of one frame, or `None` when it is none, is broken, has something behind it or is larger than `cap` bytes.
pub(crate) fn decompress(frame: &[u8], cap: usize) -> Option<Vec<u8>> {
    let mut decoder = zstd::Decoder::with_buffer(frame).ok()?.single_frame();
    decoder.window_log_max(WINDOW_LOG).ok()?;
    let mut bytes = Vec::new();
    let limit = u64::try_from(cap).ok()?.checked_add(1)?;
    decoder.by_ref().take(limit).read_to_end(&mut bytes).ok()?;
    (bytes.len() <= cap && decoder.finish().is_empty()).then_some(bytes)
}

/// Beyond it a build takes seconds longer and a hundredth smaller.
const LEVEL: i32 = 12;
/// 16 MiB: the distance between two programs. The kernel takes up to 2^27.
const WINDOW_LOG: u32 = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_compressed_comes_back_the_same_each_time() {
        let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(|i| (i % 70_001).to_le_bytes()).collect();
        let frame = compress(&bytes).unwrap();
        assert!(frame.len() < bytes.len() / 4);
        assert_eq!(compress(&bytes).unwrap(), frame);
        assert_eq!(decompress(&frame, bytes.len()).unwrap(), bytes);
        assert_eq!(decompress(&frame, bytes.len() - 1), None);
    }

    #[test]
    fn a_broken_frame_is_none() {
        let frame = compress(b"a root of files, and again a root of files").unwrap();
        assert_eq!(decompress(&frame[..frame.len() - 1], 1000), None);
        assert_eq!(decompress(&[&frame[..], b"\0\0\0\0"].concat(), 1000), None);
        assert_eq!(decompress(b"070701", 1000), None);
        for position in 0..frame.len() {
            let mut changed = frame.clone();
            changed[position] ^= 1;
            assert_ne!(decompress(&changed, 1000).as_deref(), Some(&b"a root"[..]));
        }
    }
}
