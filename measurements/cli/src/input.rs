// SPDX-License-Identifier: Apache-2.0
//! Reads input files with caps.

use std::{fs::File, io::Read as _, path::Path};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use types::{MachineShape, Refusal};

use crate::output::Failure;

/// Reads a file of at most `max` bytes.
pub(crate) fn file(path: &Path, max: u64) -> anyhow::Result<Vec<u8>> {
    let named = || format!("cannot read {}", path.display());
    let mut bytes = Vec::new();
    File::open(path).with_context(named)?.take(max.saturating_add(1)).read_to_end(&mut bytes).with_context(named)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > max {
        bail!("{} has more than {max} bytes", path.display());
    }
    Ok(bytes)
}

/// Reads a binary file that may be written in hexadecimal or base64.
pub(crate) fn binary(path: &Path, max: u64) -> anyhow::Result<Vec<u8>> {
    Ok(decode(file(path, max.saturating_mul(2).saturating_add(4096))?))
}

/// Reads a machine's shape from TOML.
pub(crate) fn shape(path: &Path) -> Result<MachineShape, Failure> {
    let bytes = file(path, MAX_SHAPE)?;
    let refused = |detail: String| {
        Refusal::new(
            "shape_malformed",
            "shape",
            detail,
            "write vcpus, memory_mib, physical_bits, qemu and devices as the help shows",
        )
    };
    let text = String::from_utf8(bytes).map_err(|_| refused("the shape is not UTF-8".to_owned()))?;
    toml::from_str(&text).map_err(|error| refused(error.message().to_owned()).into())
}

fn decode(bytes: Vec<u8>) -> Vec<u8> {
    let text: Vec<u8> = bytes.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    if text.is_empty() || !text.iter().all(|byte| byte.is_ascii_graphic()) {
        return bytes;
    }
    hex::decode(&text).or_else(|_| STANDARD.decode(&text)).unwrap_or(bytes)
}

const MAX_SHAPE: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_and_base64_are_recognised() {
        let raw = vec![4, 0, 2, 0, 0xff, b' '];
        assert_eq!(decode(raw.clone()), raw);
        assert_eq!(decode(b"04 00\n0200ff20\n".to_vec()), raw);
        assert_eq!(decode(format!("{}\n", STANDARD.encode(&raw)).into_bytes()), raw);
        assert_eq!(decode(b"{not base64}".to_vec()), b"{not base64}");
    }
}
