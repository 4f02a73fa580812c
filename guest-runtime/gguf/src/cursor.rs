// SPDX-License-Identifier: Apache-2.0
//! Reads a header front to back. No length in it is believed before it was compared with what is left of the file.

use crate::{Field, GgufError, MAX_HEADER_BYTES};
use std::io::{self, Read};

/// A place in the header.
pub(crate) struct Cursor<'s, S> {
    source: &'s mut S,
    position: u64,
    length: u64,
}

impl<'s, S: Read> Cursor<'s, S> {
    pub(crate) fn new(source: &'s mut S, length: u64) -> Self {
        Self { source, position: 0, length }
    }

    /// Bytes from the start of the file.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn u32(&mut self, field: Field) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.bytes(field)?))
    }

    pub(crate) fn u64(&mut self, field: Field) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.bytes(field)?))
    }

    /// A number of things, at most `most`.
    pub(crate) fn count(&mut self, field: Field, most: u64) -> Result<u64, GgufError> {
        let count = self.u64(field)?;
        if count > most { Err(GgufError::TooMany { field, count, most }) } else { Ok(count) }
    }

    pub(crate) fn bytes<const N: usize>(&mut self, field: Field) -> Result<[u8; N], GgufError> {
        self.claim(field, u64::try_from(N).unwrap_or(u64::MAX))?;
        let mut bytes = [0; N];
        self.fill(field, &mut bytes)?;
        Ok(bytes)
    }

    /// The length of a string, which must be in the file: at most `most` bytes.
    pub(crate) fn string_length(&mut self, field: Field, most: u64) -> Result<u64, GgufError> {
        let length = self.u64(field)?;
        if length > most { Err(GgufError::TooLong { field, length, most }) } else { Ok(length) }
    }

    /// A name: a text of 1 to `most` bytes.
    pub(crate) fn name(&mut self, field: Field, most: u64) -> Result<String, GgufError> {
        let length = self.string_length(field, most)?;
        self.claim(field, length)?;
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| GgufError::Overflow { field })?];
        self.fill(field, &mut bytes)?;
        let text = String::from_utf8(bytes).map_err(|_| GgufError::NotText { field })?;
        if text.is_empty() || text.contains('\0') { Err(GgufError::NotText { field }) } else { Ok(text) }
    }

    /// Passes over `count` things of `size` bytes.
    pub(crate) fn skip(&mut self, field: Field, count: u64, size: u64) -> Result<(), GgufError> {
        let mut left = count.checked_mul(size).ok_or(GgufError::Overflow { field })?;
        self.claim(field, left)?;
        let mut buffer = [0; 4096];
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            self.fill(field, buffer.get_mut(..length).unwrap_or_default())?;
            left = left.saturating_sub(u64::try_from(length).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// Whether so many bytes are left, of the file and of what a header may have.
    pub(crate) fn claim(&self, field: Field, needed: u64) -> Result<(), GgufError> {
        let left = self.length.saturating_sub(self.position);
        if needed > left {
            return Err(GgufError::Truncated { field, needed, left });
        }
        let end = self.position.saturating_add(needed);
        if end > MAX_HEADER_BYTES { Err(GgufError::Header) } else { Ok(()) }
    }

    fn fill(&mut self, field: Field, buffer: &mut [u8]) -> Result<(), GgufError> {
        let needed = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        self.source.read_exact(buffer).map_err(|error| match error.kind() {
            // The file is shorter than its length was said to be.
            io::ErrorKind::UnexpectedEof => GgufError::Truncated { field, needed, left: 0 },
            kind => GgufError::Io(kind),
        })?;
        self.position = self.position.saturating_add(needed);
        Ok(())
    }
}
