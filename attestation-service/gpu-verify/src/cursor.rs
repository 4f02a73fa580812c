// SPDX-License-Identifier: Apache-2.0
//! Reads little-endian structures out of a device's bytes; never past their end.

/// A structure of a device's report that is cut short, too long or not as its document says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct ReportMalformed {
    /// The field, with its index where there are several.
    pub field: String,
    /// The rule that it breaks.
    pub rule: String,
}

impl ReportMalformed {
    pub(crate) fn new(field: impl Into<String>, rule: impl Into<String>) -> Self {
        Self { field: field.into(), rule: rule.into() }
    }
}

pub(crate) type Parsed<T> = Result<T, ReportMalformed>;

/// What is left to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn take(&mut self, len: usize, field: &str) -> Parsed<&'a [u8]> {
        let (taken, rest) = self
            .0
            .split_at_checked(len)
            .ok_or_else(|| ReportMalformed::new(field, format!("needs {len} bytes, {} are left", self.0.len())))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &str) -> Parsed<[u8; N]> {
        let bytes = self.take(N, field)?;
        bytes.try_into().map_err(|_| ReportMalformed::new(field, format!("needs {N} bytes")))
    }

    pub(crate) fn u8(&mut self, field: &str) -> Parsed<u8> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self, field: &str) -> Parsed<u16> {
        self.array(field).map(u16::from_le_bytes)
    }

    /// Three bytes, little-endian.
    pub(crate) fn u24(&mut self, field: &str) -> Parsed<usize> {
        let [a, b, c] = self.array(field)?;
        Ok(usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16)
    }

    /// A byte that the document fixes.
    pub(crate) fn exactly(&mut self, expected: u8, field: &str) -> Parsed<()> {
        let found = self.u8(field)?;
        if found == expected {
            return Ok(());
        }
        Err(ReportMalformed::new(field, format!("must be {expected:#04x}, found {found:#04x}")))
    }

    pub(crate) fn finish(self, field: &str) -> Parsed<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(ReportMalformed::new(field, format!("{} bytes are left over", self.0.len())))
    }
}
