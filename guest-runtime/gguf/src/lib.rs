// SPDX-License-Identifier: Apache-2.0
//! Whether a GGUF file is what it says of itself: every count, length, type, size and offset in its header, against caps
//! and against the file's own length. Written after the specification (ggml-org/ggml `docs/gguf.md`, versions 2 and 3,
//! little endian) and `ggml/include/ggml.h`.
//!
//! The weights are a model owner's, decrypted and verified, and still not to be trusted: they are read by C++ that makes
//! its arrays as large as the file says. [`check`] comes first. It reads the header alone, once, in constant memory but
//! for the names, and refuses before anything is allocated by a number in the file.
//!
//! What it does not establish: that the values make a model. Which keys an architecture needs, the shapes of its tensors,
//! and what the weights are, is for the library that computes with them.

mod cursor;
mod error;
mod metadata;
mod tensors;
#[cfg(test)]
mod tests;

pub use error::{Field, GgufError};
pub use metadata::{MAX_ARRAY, MAX_KEY_BYTES, MAX_KEYS, MAX_STRING_BYTES};
pub use tensors::{MAX_ALIGNMENT, MAX_DIMENSIONS, MAX_NAME_BYTES, MAX_TENSORS};

use cursor::Cursor;
use std::io::Read;

/// What a header says that keeps its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Of the format: 2 or 3.
    pub version: u32,
    /// Keys of the metadata.
    pub keys: u64,
    /// Tensors, at least one.
    pub tensors: u64,
    /// Where the weights begin, in bytes from the start of the file.
    pub data_start: u64,
    /// Bytes of weights, with what fills up to the alignment between them.
    pub data_bytes: u64,
}

/// Checks the file that `source` reads from its beginning and that has `length` bytes. Reads no further than its header.
///
/// Accepted is a header whose tensors lie one behind the other, each beginning at the next multiple of the alignment, as
/// every writer lays them out and the library demands, and end with the file: within it, and with less than one alignment
/// left over. So no two overlap, and none reaches beyond the end.
///
/// # Errors
/// [`GgufError`]: the first rule that is broken, in the order of the file.
pub fn check(source: &mut impl Read, length: u64) -> Result<Header, GgufError> {
    let mut cursor = Cursor::new(source, length);
    if cursor.bytes::<4>(Field::Magic)? != MAGIC {
        return Err(GgufError::Magic);
    }
    let version = cursor.u32(Field::Version)?;
    if !VERSIONS.contains(&version) {
        return Err(GgufError::Version { version });
    }
    let tensors = cursor.count(Field::Tensors, MAX_TENSORS)?;
    let keys = cursor.count(Field::Keys, MAX_KEYS)?;
    if tensors == 0 {
        return Err(GgufError::NoTensors);
    }
    let alignment = metadata::read(&mut cursor, keys)?;
    let data_bytes = tensors::read(&mut cursor, tensors, alignment)?;
    let overflow = GgufError::Overflow { field: Field::Data };
    let data_start = cursor.position().checked_next_multiple_of(alignment).ok_or(overflow)?;
    let end = data_start.checked_add(data_bytes).ok_or(overflow)?;
    if end > length {
        return Err(GgufError::Short { needed: end, length });
    }
    if length.saturating_sub(end) >= alignment {
        return Err(GgufError::Trailing { end, length });
    }
    Ok(Header { version, keys, tensors, data_start, data_bytes })
}

/// Longest header, in bytes. A vocabulary of 300,000 tokens with its merges has some 20 MB.
pub const MAX_HEADER_BYTES: u64 = 128 << 20;

const MAGIC: [u8; 4] = *b"GGUF";
/// 1 had shorter counts and is read by nobody any more. A file of big endian numbers shows another number here.
const VERSIONS: [u32; 2] = [2, 3];
