// SPDX-License-Identifier: Apache-2.0
//! Where the tests find data that is not part of the project.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};

use types::Sha256Digest;

/// The directory with test vectors, when there is one.
pub(crate) fn vectors() -> Option<PathBuf> {
    let dir = std::env::var_os("CHRYSALIS_VECTORS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"), PathBuf::from);
    dir.is_dir().then_some(dir)
}

/// `OVMF.fd` of Debian's ovmf 2025.02-8+deb13u1, from `CHRYSALIS_OVMF` or anywhere in the cache.
pub(crate) fn debian_ovmf() -> Option<Vec<u8>> {
    let digest: Sha256Digest = OVMF_SHA256.parse().unwrap();
    let cache = std::env::var_os("CHRYSALIS_CACHE").map(PathBuf::from).or_else(|| {
        std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
            .map(|dir| dir.join("chrysalis"))
    });
    let named = std::env::var_os("CHRYSALIS_OVMF").map(PathBuf::from);
    let mut candidates: Vec<PathBuf> = named.into_iter().collect();
    if let Some(cache) = cache {
        find(&cache, 5, &mut candidates);
    }
    candidates.iter().filter_map(|path| std::fs::read(path).ok()).find(|bytes| Sha256Digest::of(bytes) == digest)
}

fn find(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth > 0 {
            find(&path, depth - 1, found);
        } else if kind.is_file() && (path.ends_with("OVMF.fd") || path.ends_with("firmware.fd")) {
            found.push(path);
        }
    }
}

const OVMF_SHA256: &str = "14954040cc754ade0c625ac3470ea46d4c14318b5b1396de4ef77090203d76db";
