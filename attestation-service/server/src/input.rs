// SPDX-License-Identifier: Apache-2.0
//! Files from the command line, each with a cap.

use std::{fs::File, io::Read as _, path::Path};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use key_release::ModelKey;
use zeroize::Zeroizing;

/// Reads a file of at most `max` bytes.
pub(crate) fn read(path: &Path, max: usize) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("could not open {shown}"))?;
    let mut bytes = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes).with_context(|| format!("could not read {shown}"))?;
    if bytes.len() > max {
        bail!("{shown} has more than {max} bytes");
    }
    Ok(bytes)
}

/// Reads a binary file that may be written in hexadecimal or base64.
pub(crate) fn read_binary(path: &Path, max: usize) -> anyhow::Result<Vec<u8>> {
    let bytes = read(path, max.saturating_mul(3))?;
    Ok(decode(&bytes).unwrap_or(bytes))
}

/// Decodes hexadecimal or base64 text; `None` where the bytes are neither.
fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let text: String = core::str::from_utf8(bytes).ok()?.split_whitespace().collect();
    let text = text.strip_prefix("0x").unwrap_or(&text);
    hex::decode(text).ok().or_else(|| STANDARD.decode(text).ok()).filter(|decoded| !decoded.is_empty())
}

/// Reads a model key: 32 bytes, or 64 hexadecimal digits.
pub(crate) fn read_key(path: &Path) -> anyhow::Result<ModelKey> {
    let bytes = Zeroizing::new(read(path, 128)?);
    let mut key = ModelKey::default();
    if bytes.len() == key.len() {
        key.copy_from_slice(&bytes);
        return Ok(key);
    }
    let text = core::str::from_utf8(&bytes).map(str::trim).unwrap_or_default();
    if hex::decode_to_slice(text, key.as_mut_slice()).is_err() {
        bail!("{} must have 32 bytes or 64 hexadecimal digits", path.display());
    }
    Ok(key)
}

/// Reads a time like `2026-03-20T00:00:00Z` as seconds since 1970.
pub(crate) fn parse_time(text: &str) -> Result<u64, String> {
    let time = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)
        .map_err(|_| "a time is written like 2026-03-20T00:00:00Z".to_owned())?;
    u64::try_from(time.unix_timestamp()).map_err(|_| "a time before 1970 is not possible".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_may_be_written_in_three_ways() {
        assert_eq!(decode(b"0400 02\n00"), Some(vec![4, 0, 2, 0]));
        assert_eq!(decode(b"0x0400"), Some(vec![4, 0]));
        assert_eq!(decode(b"BAACAA==\n"), Some(vec![4, 0, 2, 0]));
        assert_eq!(decode(&[4, 0, 2, 0, 0x81]), None);
        assert_eq!(decode(b""), None);
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(parse_time("1970-01-01T00:01:00Z"), Ok(60));
        assert_eq!(parse_time("1970-01-01T01:00:00+01:00"), Ok(0));
        assert!(parse_time("1969-12-31T23:59:59Z").is_err());
        assert!(parse_time("2026-03-20").is_err());
    }
}
