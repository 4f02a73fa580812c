// SPDX-License-Identifier: Apache-2.0
//! The inputs as one archive.
//!
//! The archive is a tar file (POSIX ustar) that depends on the locks alone: `inputs.json`, then one file
//! `sha256/<digest>` for each digest, sorted. Reading one accepts nothing but the digests that this tree's locks name.
//! The Rust toolchain is named by its digest and not in it: its publisher keeps every version.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use types::Sha256Digest;

use super::{Inputs, InputsError};
use crate::crates;
use crate::fetch::{self, Sources};
use crate::files::{self, FileError};
use crate::progress::{Progress, Unit};
use crate::rust::RustLock;
use crate::workspace::Workspace;

/// `inputs.json` of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchiveIndex {
    /// [`ARCHIVE_SCHEMA`].
    pub schema: String,
    /// Every file of the archive.
    pub inputs: Vec<ArchivedInput>,
    /// The toolchain that a build needs besides.
    pub rust: RustLock,
}

/// A file of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchivedInput {
    /// Lock name; for a package of a set `set/package`, for a Rust package `Cargo.lock/package`.
    pub name: String,
    /// Version.
    pub version: String,
    /// File name.
    pub file: String,
    /// SHA-256 of its bytes, and its name in the archive.
    pub sha256: Sha256Digest,
}

/// Fetches what is missing and writes the archive. Its bytes depend on the locks alone.
///
/// # Errors
/// [`InputsError`]; no archive is left then.
pub fn export_inputs(
    workspace: &Workspace,
    inputs: &Inputs,
    out: &Path,
    sources: &Sources,
    progress: &dyn Progress,
) -> Result<(u64, Sha256Digest), InputsError> {
    let mut places = crates::files(workspace, &inputs.crates, sources, progress)?;
    for lock in inputs.locks() {
        places.insert(lock.lock.sha256, fetch::fetch_input(&lock, sources, progress)?.path);
    }
    let directory = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let at = |e| InputsError::from(FileError::at(out, e));
    let file = tempfile::NamedTempFile::new_in(directory).map_err(at)?;
    let index = ArchiveIndex {
        schema: ARCHIVE_SCHEMA.to_owned(),
        inputs: inputs.by_digest().into_values().collect(),
        rust: inputs.rust.lock.clone(),
    };
    write_archive(io::BufWriter::with_capacity(1 << 20, file.as_file()), &index, &places, progress).map_err(at)?;
    file.as_file().sync_all().map_err(at)?;
    files::set_public(file.path()).map_err(at)?;
    file.persist(out).map_err(|e| at(e.error))?;
    Ok(files::sha256_file(out)?)
}

/// Brings the files of an archive into the cache, each compared with its digest. Only digests that `inputs` names are
/// accepted, and all of them must be there.
///
/// # Errors
/// [`InputsError`]; what was complete before stays.
pub fn import_inputs(
    inputs: &Inputs,
    archive: &Path,
    sources: &Sources,
    progress: &dyn Progress,
) -> Result<usize, InputsError> {
    let file = File::open(archive).map_err(|e| FileError::at(archive, e))?;
    let mut missing = inputs.by_digest();
    let total = missing.len();
    let mut tar = tar::Archive::new(io::BufReader::with_capacity(1 << 20, file));
    let format = |rule: String| InputsError::Format { archive: archive.to_owned(), rule };
    let broken = |e: io::Error| format(format!("not a tar archive: {e}"));
    let mut entries = tar.entries().map_err(broken)?;
    let first = entries.next().ok_or_else(|| format("it is empty".to_owned()))?.map_err(broken)?;
    check_index(first).map_err(&format)?;
    for entry in entries {
        let mut entry = entry.map_err(broken)?;
        let digest = name_of(&entry).ok_or_else(|| format("a file is not named sha256/<digest>".to_owned()))?;
        let Some(input) = missing.remove(&digest) else {
            return Err(format(format!("{digest} is no input of this tree, or is there twice")));
        };
        sources.cache.entry(fetch::CACHE_KIND, &digest, progress, |directory| {
            let found = copy(&mut entry, &directory.join(&input.file))?;
            if found == digest {
                Ok(())
            } else {
                Err(InputsError::DigestMismatch { archive: archive.to_owned(), expected: digest, found })
            }
        })?;
        progress.advance("inputs", (total - missing.len()) as u64, Some(total as u64), Unit::Items);
    }
    progress.finish();
    match missing.values().next() {
        None => Ok(total),
        Some(input) => Err(InputsError::Incomplete {
            archive: archive.to_owned(),
            count: missing.len(),
            first: input.name.clone(),
        }),
    }
}

fn write_archive(
    writer: impl Write,
    index: &ArchiveIndex,
    places: &BTreeMap<Sha256Digest, PathBuf>,
    progress: &dyn Progress,
) -> io::Result<()> {
    let mut builder = tar::Builder::new(writer);
    let mut text = serde_json::to_vec_pretty(index)?;
    text.push(b'\n');
    builder.append(&header(INDEX, text.len() as u64)?, text.as_slice())?;
    for (count, input) in index.inputs.iter().enumerate() {
        let path = places.get(&input.sha256).ok_or_else(|| io::Error::other(format!("no file for {}", input.name)))?;
        let file = File::open(path)?;
        builder.append(&header(&format!("{BLOBS}{}", input.sha256), file.metadata()?.len())?, file)?;
        progress.advance("inputs", count as u64 + 1, Some(index.inputs.len() as u64), Unit::Items);
    }
    progress.finish();
    builder.into_inner()?.flush()
}

fn header(path: &str, size: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    Ok(header)
}

fn check_index(mut entry: tar::Entry<'_, impl Read>) -> Result<(), String> {
    if entry.path().ok().is_none_or(|path| path != Path::new(INDEX)) {
        return Err(format!("its first file must be {INDEX}"));
    }
    let mut text = Vec::new();
    entry.by_ref().take(MAX_INDEX).read_to_end(&mut text).map_err(|e| e.to_string())?;
    let index: ArchiveIndex = serde_json::from_slice(&text).map_err(|e| format!("{INDEX}: {e}"))?;
    if index.schema == ARCHIVE_SCHEMA { Ok(()) } else { Err(format!("{INDEX}: its schema must be {ARCHIVE_SCHEMA}")) }
}

fn name_of(entry: &tar::Entry<'_, impl Read>) -> Option<Sha256Digest> {
    let path = entry.path().ok()?;
    let name = path.to_str()?.strip_prefix(BLOBS)?;
    entry.header().entry_type().is_file().then(|| name.parse().ok())?
}

fn copy(reader: &mut impl Read, target: &Path) -> Result<Sha256Digest, InputsError> {
    let at = |e| InputsError::from(FileError::at(target, e));
    let mut file = File::create(target).map_err(at)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = reader.read(&mut buffer).map_err(at)?;
        let Some(piece) = buffer.get(..count).filter(|piece| !piece.is_empty()) else { break };
        hash.update(piece);
        file.write_all(piece).map_err(at)?;
    }
    Ok(Sha256Digest::from_bytes(hash.finalize().into()))
}

/// The format of `inputs.json`.
pub const ARCHIVE_SCHEMA: &str = "chrysalis/inputs/v1";
const INDEX: &str = "inputs.json";
const BLOBS: &str = "sha256/";
const MAX_INDEX: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::locks::{Kind, Lock, NamedLock};
    use crate::progress::Silent;
    use crate::rust::NamedRust;

    fn inputs(contents: &[&[u8]]) -> Inputs {
        let lock = |content: &&[u8]| NamedLock {
            name: format!("l{}", content.len()),
            lock: Lock {
                kind: Kind::Debian,
                package: "p".into(),
                version: "1".into(),
                path: format!("pool/p_{}.deb", content.len()),
                size: content.len() as u64,
                sha256: Sha256Digest::of(content),
                licence: "x".into(),
                reason: "x".into(),
                suite: None,
                members: Vec::new(),
            },
            lock_sha256: Sha256Digest::ZERO,
        };
        let rust = NamedRust::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../locks")).unwrap();
        Inputs {
            files: contents.iter().map(lock).collect(),
            sets: Vec::new(),
            rust,
            crates: Vec::new(),
            tools: Vec::new(),
        }
    }

    /// An archive whose files are `contents` under the digests of `names`.
    fn archive(dir: &Path, names: &[&[u8]], contents: &[&[u8]]) -> PathBuf {
        let all = inputs(names);
        let mut places = BTreeMap::new();
        for (index, (name, content)) in names.iter().zip(contents).enumerate() {
            let path = dir.join(index.to_string());
            std::fs::write(&path, content).unwrap();
            places.insert(Sha256Digest::of(name), path);
        }
        let index = ArchiveIndex {
            schema: ARCHIVE_SCHEMA.into(),
            inputs: all.by_digest().into_values().collect(),
            rust: all.rust.lock,
        };
        let path = dir.join("inputs.tar");
        write_archive(File::create(&path).unwrap(), &index, &places, &Silent).unwrap();
        path
    }

    fn import(wanted: &[&[u8]], archive: &Path) -> (Result<usize, InputsError>, Sources, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = Some("http://127.0.0.1:1/debian".to_owned());
        let sources = Sources::new(Cache::at(dir.path()).unwrap(), nowhere);
        (import_inputs(&inputs(wanted), archive, &sources, &Silent), sources, dir)
    }

    #[test]
    fn an_archive_replaces_the_network() {
        let dir = tempfile::tempdir().unwrap();
        let contents: [&[u8]; 2] = [b"one", b"three"];
        let path = archive(dir.path(), &contents, &contents);
        let (result, sources, _cache) = import(&contents, &path);
        assert_eq!(result.unwrap(), 2);
        for lock in inputs(&contents).locks() {
            fetch::fetch_input(&lock, &sources, &Silent).unwrap();
        }
    }

    #[test]
    fn archives_of_equal_locks_are_equal() {
        let contents: [&[u8]; 2] = [b"one", b"three"];
        let bytes = || {
            let dir = tempfile::tempdir().unwrap();
            std::fs::read(archive(dir.path(), &contents, &contents)).unwrap()
        };
        assert_eq!(bytes(), bytes());
    }

    #[test]
    fn other_bytes_and_other_inputs_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = archive(dir.path(), &[b"one"], &[b"0ne"]);
        let (result, sources, _cache) = import(&[b"one"], &path);
        assert!(matches!(result, Err(InputsError::DigestMismatch { .. })), "{result:?}");
        assert!(!fetch::place(&sources, &Sha256Digest::of(b"one"), "p_3.deb").exists());
        let path = archive(dir.path(), &[b"one"], &[b"one"]);
        let (result, _, _cache) = import(&[b"three"], &path);
        assert!(matches!(result, Err(InputsError::Format { .. })), "{result:?}");
        let (result, _, _cache) = import(&[b"one", b"three"], &path);
        assert!(matches!(result, Err(InputsError::Incomplete { count: 1, .. })), "{result:?}");
    }

    #[test]
    fn something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for bytes in [&b""[..], b"not a tar archive, but long enough to be looked at", &[0; 4096]] {
            let path = dir.path().join("x");
            std::fs::write(&path, bytes).unwrap();
            let (result, _, _cache) = import(&[b"one"], &path);
            assert!(matches!(result, Err(InputsError::Format { .. })), "{result:?}");
        }
    }
}
