// SPDX-License-Identifier: Apache-2.0
//! Reads little-endian fields from untrusted bytes, in order, and insists that nothing is left over.

/// A position in a byte string.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    offset: usize,
}

/// Why a read failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The field reaches beyond the end.
    #[error("{field} at offset {offset} needs {needed} bytes, {left} are left")]
    Truncated {
        /// Name of the field.
        field: &'static str,
        /// Where it begins.
        offset: usize,
        /// Its size in bytes.
        needed: usize,
        /// Bytes from `offset` to the end.
        left: usize,
    },
    /// Bytes follow the last field.
    #[error("{left} bytes follow the last field at offset {offset}")]
    Trailing {
        /// Where the last field ends.
        offset: usize,
        /// How many bytes follow.
        left: usize,
    },
}

impl<'a> Cursor<'a> {
    /// Begins at the first of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    /// Bytes read so far.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// The bytes that were not read yet.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    /// Takes the next `len` bytes.
    ///
    /// # Errors
    /// [`ReadError::Truncated`].
    pub fn slice(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], ReadError> {
        let Some((taken, rest)) = self.bytes.split_at_checked(len) else {
            return Err(ReadError::Truncated { field, offset: self.offset, needed: len, left: self.bytes.len() });
        };
        self.bytes = rest;
        self.offset = self.offset.saturating_add(len);
        Ok(taken)
    }

    /// Takes the next `N` bytes as an array.
    ///
    /// # Errors
    /// [`ReadError::Truncated`].
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], ReadError> {
        let Some((taken, rest)) = self.bytes.split_first_chunk::<N>() else {
            return Err(ReadError::Truncated { field, offset: self.offset, needed: N, left: self.bytes.len() });
        };
        self.bytes = rest;
        self.offset = self.offset.saturating_add(N);
        Ok(*taken)
    }

    /// Takes a byte.
    ///
    /// # Errors
    /// [`ReadError::Truncated`].
    pub fn u8(&mut self, field: &'static str) -> Result<u8, ReadError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    /// Takes a little-endian 16-bit number.
    ///
    /// # Errors
    /// [`ReadError::Truncated`].
    pub fn u16(&mut self, field: &'static str) -> Result<u16, ReadError> {
        self.array(field).map(u16::from_le_bytes)
    }

    /// Takes a little-endian 32-bit number.
    ///
    /// # Errors
    /// [`ReadError::Truncated`].
    pub fn u32(&mut self, field: &'static str) -> Result<u32, ReadError> {
        self.array(field).map(u32::from_le_bytes)
    }

    /// Takes a little-endian 64-bit number.
    ///
    /// # Errors
    /// [`ReadError::Truncated`].
    pub fn u64(&mut self, field: &'static str) -> Result<u64, ReadError> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// Takes `N` reserved bytes without a judgement of their value.
    ///
    /// # Errors
    /// [`ReadError::Truncated`].
    pub fn skip(&mut self, field: &'static str, len: usize) -> Result<(), ReadError> {
        self.slice(field, len).map(drop)
    }

    /// Ends the read.
    ///
    /// # Errors
    /// [`ReadError::Trailing`] when bytes are left.
    pub const fn finish(self) -> Result<(), ReadError> {
        if self.bytes.is_empty() {
            Ok(())
        } else {
            Err(ReadError::Trailing { offset: self.offset, left: self.bytes.len() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncation_names_the_field_and_leaves_the_position() {
        let mut cursor = Cursor::new(&[1, 2, 3]);
        assert_eq!(cursor.u16("a"), Ok(0x0201));
        assert_eq!(cursor.u32("b"), Err(ReadError::Truncated { field: "b", offset: 2, needed: 4, left: 1 }));
        assert_eq!(
            cursor.slice("c", usize::MAX).unwrap_err(),
            ReadError::Truncated { field: "c", offset: 2, needed: usize::MAX, left: 1 }
        );
        assert_eq!(cursor.clone().finish(), Err(ReadError::Trailing { offset: 2, left: 1 }));
        assert_eq!(cursor.u8("d"), Ok(3));
        assert_eq!(cursor.finish(), Ok(()));
    }
}
