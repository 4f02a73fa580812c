// SPDX-License-Identifier: Apache-2.0
//! NVIDIA's libraries, loaded at run time. All unsafe code of this crate is in the two modules below; what leaves them is checked
//! for its length and owned.

pub(crate) mod nscq;
pub(crate) mod nvml;

pub(crate) use nscq::Nscq;
pub(crate) use nvml::Nvml;

/// Why a library or one of its calls failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LibraryError {
    /// It could not be loaded.
    #[error("{name} cannot be loaded: {why}")]
    Missing { name: &'static str, why: String },
    /// It has no such symbol.
    #[error("{library} has no symbol {symbol}")]
    Symbol { library: &'static str, symbol: &'static str },
    /// A call gave another code than success.
    #[error("{call} gave {code}")]
    Call { call: &'static str, code: i32 },
    /// A length beyond the buffer, or a text without an end.
    #[error("{call}: {field} breaks its limit ({found})")]
    Limit { call: &'static str, field: &'static str, found: u64 },
}

/// Both libraries.
pub(crate) struct Libraries {
    pub(crate) nvml: Nvml,
    /// Absent from images for machines without NVSwitches.
    pub(crate) nscq: Result<Nscq, LibraryError>,
}

impl Libraries {
    pub(crate) fn load() -> Result<Self, gpu_protocol::GpuFailure> {
        let nvml = Nvml::load().map_err(|error| gpu_protocol::GpuFailure::from(&error))?;
        Ok(Self { nvml, nscq: Nscq::load() })
    }
}

/// Report and certificates as a library gave them, each not longer than its buffer.
#[derive(Debug)]
pub(crate) struct RawEvidence {
    pub(crate) report: Vec<u8>,
    pub(crate) chain: Vec<u8>,
}

/// The first `length` bytes of a buffer that a library filled.
pub(crate) fn part(
    call: &'static str,
    field: &'static str,
    buffer: &[u8],
    length: u32,
) -> Result<Vec<u8>, LibraryError> {
    let limit = || LibraryError::Limit { call, field, found: length.into() };
    let length = usize::try_from(length).map_err(|_| limit())?;
    buffer.get(..length).map(<[u8]>::to_vec).ok_or_else(limit)
}

/// The text before the first NUL of a buffer.
pub(crate) fn text(call: &'static str, field: &'static str, buffer: &[u8]) -> Result<String, LibraryError> {
    let text = std::ffi::CStr::from_bytes_until_nul(buffer).ok().and_then(|text| text.to_str().ok());
    let found = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
    text.map(str::to_owned).ok_or(LibraryError::Limit { call, field, found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_longer_than_its_buffer_is_taken() {
        assert_eq!(part("call", "size", b"abcd", 3).unwrap(), b"abc");
        assert_eq!(part("call", "size", b"abcd", 4).unwrap(), b"abcd");
        let too_long = LibraryError::Limit { call: "call", field: "size", found: 5 };
        assert_eq!(part("call", "size", b"abcd", 5), Err(too_long));
        assert!(part("call", "size", b"abcd", u32::MAX).is_err());
        assert_eq!(text("call", "uuid", b"GPU-1\0rest").unwrap(), "GPU-1");
        assert!(text("call", "uuid", b"no end").is_err());
        assert!(text("call", "uuid", b"\xff\0").is_err());
    }
}
