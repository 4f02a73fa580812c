// SPDX-License-Identifier: Apache-2.0
//! The encrypted list of a model's files, and what file names it may hold.

use crate::PackError;
use crate::index::{MAX_OBJECTS, PackIndex};
use serde::{Deserialize, Serialize};
use types::{Blake3Digest, Document, ModelId};

/// What a model consists of. The BLAKE3 of its canonical bytes is the model's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `chrysalis/model/v1`.
    schema: String,
    /// The model's name.
    pub name: String,
    /// The model's revision.
    pub revision: String,
    /// Bytes of plaintext in an object; a longer file goes on in the next.
    pub object_size: u64,
    /// The files, sorted by path.
    pub files: Vec<FileEntry>,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// BLAKE3 of the file.
    pub blake3: Blake3Digest,
    /// Number of the object that holds its first bytes.
    pub object: u32,
    /// Relative, with `/`: see [`check_path`].
    pub path: String,
    /// Bytes.
    pub size: u64,
}

impl Document for Manifest {
    const SCHEMA: &'static str = "chrysalis/model/v1";
    const MAX_BYTES: usize = 2 << 20;

    fn schema(&self) -> &str {
        &self.schema
    }
}

impl Manifest {
    pub(crate) fn new(name: &str, revision: &str, object_size: u64, files: Vec<FileEntry>) -> Self {
        Self {
            schema: Self::SCHEMA.to_owned(),
            name: name.to_owned(),
            revision: revision.to_owned(),
            object_size,
            files,
        }
    }

    /// Reads a manifest and checks it by itself and against the pack that held it: each object belongs to one file and
    /// has the length that this file's part makes. Who wrote it is not said by that: [`crate::open_manifest`] compares the
    /// model's identity.
    ///
    /// # Errors
    /// [`PackError`] names the rule.
    pub fn parse(bytes: &[u8], index: &PackIndex) -> Result<Self, PackError> {
        let manifest = Self::from_canonical(bytes).map_err(PackError::manifest)?;
        manifest.check_files()?;
        manifest.check_objects(index)?;
        Ok(manifest)
    }

    /// The model's full name.
    ///
    /// # Errors
    /// Name or revision break the rules of [`ModelId`].
    pub fn id(&self, identity: Blake3Digest) -> Result<ModelId, PackError> {
        ModelId::new(&self.name, &self.revision, identity).map_err(PackError::manifest)
    }

    /// Bytes of all files together.
    #[must_use]
    pub fn plaintext_length(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.size))
    }

    /// The objects of a file and the bytes of plaintext in each.
    pub(crate) fn parts(&self, file: &FileEntry) -> impl Iterator<Item = (u32, u64)> {
        let object_size = self.object_size.max(1);
        let (size, first) = (file.size, file.object);
        (0..object_count(size, object_size)).map(move |part| {
            let start = part.saturating_mul(object_size);
            let number = u32::try_from(part).unwrap_or(u32::MAX).saturating_add(first);
            (number, size.saturating_sub(start).min(object_size))
        })
    }

    pub(crate) fn check_files(&self) -> Result<(), PackError> {
        if self.object_size == 0 {
            return Err(PackError::manifest("object_size must be at least 1"));
        }
        if !(1..=MAX_FILES).contains(&self.files.len()) {
            return Err(PackError::manifest("a model has 1 to 4096 files"));
        }
        for file in &self.files {
            check_path(&file.path).map_err(PackError::manifest)?;
        }
        for (before, after) in self.files.iter().zip(self.files.iter().skip(1)) {
            if before.path >= after.path {
                return Err(PackError::manifest("files must be sorted by path, each once"));
            }
        }
        let is_directory = |path: &str| {
            let prefix = format!("{path}/");
            self.files.iter().any(|file| file.path.starts_with(&prefix))
        };
        if self.files.iter().any(|file| is_directory(&file.path)) {
            return Err(PackError::manifest("a path is a file and a directory at once"));
        }
        Ok(())
    }

    fn check_objects(&self, index: &PackIndex) -> Result<(), PackError> {
        let mut next = FIRST_FILE_OBJECT;
        for file in &self.files {
            if file.object != next || object_count(file.size, self.object_size) > MAX_OBJECTS_U64 {
                return Err(PackError::manifest("files must take the objects in order, without gaps"));
            }
            for (number, plaintext) in self.parts(file) {
                let length = index.object(number).map(|object| object.length);
                if length.is_none() || length != index.scheme().ciphertext_length(plaintext) {
                    return Err(PackError::manifest("an object is missing or has another length than its file"));
                }
                next = number.saturating_add(1);
            }
        }
        if usize::try_from(next) != Ok(index.objects.len()) {
            return Err(PackError::manifest("the pack has objects that belong to no file"));
        }
        Ok(())
    }
}

/// Objects that a file of `size` bytes takes; an empty file takes one.
pub(crate) fn object_count(size: u64, object_size: u64) -> u64 {
    size.div_ceil(object_size.max(1)).max(1)
}

/// Whether a path may stand in a manifest: relative, at most 255 bytes and 8 names, each name of `A-Za-z0-9._+-` and not
/// starting with a dot (so no `..`, and nothing hidden).
pub(crate) fn check_path(path: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+');
    let is_plain = |name: &str| !name.is_empty() && !name.starts_with('.') && name.bytes().all(allowed);
    if path.len() <= MAX_PATH && path.split('/').all(is_plain) && path.split('/').count() <= MAX_DEPTH {
        return Ok(());
    }
    // The path itself could be anything: it is shown escaped and cut.
    let shown: String = path.chars().take(80).collect();
    Err(format!("the path {shown:?} is not made of at most 8 plain names of A-Z a-z 0-9 . _ + - without a leading dot"))
}

pub(crate) const FIRST_FILE_OBJECT: u32 = 1;
const MAX_FILES: usize = 4096;
const MAX_OBJECTS_U64: u64 = MAX_OBJECTS as u64;
const MAX_PATH: usize = 255;
const MAX_DEPTH: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{DEFAULT_SEGMENT, KeyName, Object};
    use types::Hex32;

    fn entry(path: &str, object: u32, size: u64) -> FileEntry {
        FileEntry { blake3: Blake3Digest::ZERO, object, path: path.into(), size }
    }

    fn manifest() -> Manifest {
        Manifest::new("m", "1", 100, vec![entry("a", 1, 0), entry("b/c", 2, 250)])
    }

    fn index(plaintexts: &[u64]) -> PackIndex {
        let length =
            |plaintext: &u64| crate::stream::Scheme::of_pack(DEFAULT_SEGMENT).ciphertext_length(*plaintext).unwrap();
        let objects = (0..).zip(plaintexts);
        let objects = objects.map(|(index, size)| Object { blake3: Blake3Digest::ZERO, index, length: length(size) });
        let key = KeyName { id: "k".into(), version: 1 };
        PackIndex::new(Blake3Digest::ZERO, key, Hex32::default(), DEFAULT_SEGMENT, objects.collect())
    }

    #[test]
    fn tricky_paths_are_refused() {
        for good in ["a", "model.gguf", "a/b/c", "v1.0+x_y-z", &"x".repeat(255)] {
            assert_eq!(check_path(good), Ok(()), "{good}");
        }
        let deep = ["x"; 9].join("/");
        let bad = [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/..",
            "../a",
            "a/./b",
            ".hidden",
            "a/.b",
            "a b",
            "a\\b",
            "a\0",
            "a\n",
            "é",
            "a:b",
            &"x".repeat(256),
            &deep,
        ];
        for path in bad {
            assert!(check_path(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn objects_and_files_must_match_exactly() {
        let sizes = [500, 0, 100, 100, 50];
        let parse = |manifest: &Manifest, sizes: &[u64]| {
            Manifest::parse(&types::canonical::to_bytes(manifest).unwrap(), &index(sizes)).map_err(|error| error.code())
        };
        assert_eq!(parse(&manifest(), &sizes), Ok(manifest()));
        for sizes in [&[500, 0, 100, 100][..], &[500, 0, 100, 100, 51], &[500, 0, 100, 100, 50, 0]] {
            assert_eq!(parse(&manifest(), sizes), Err("model_manifest_malformed"));
        }
        let broken: [fn(&mut Manifest); 8] = [
            |m| m.object_size = 0,
            |m| m.files.clear(),
            |m| m.files.swap(0, 1),
            |m| m.files[1].path = "a".into(),
            |m| m.files[1].path = "a/b".into(),
            |m| m.files[1].object = 1,
            |m| m.files[1].size = u64::MAX >> 11,
            |m| m.files[0].path = "../a".into(),
        ];
        for break_it in broken {
            let mut manifest = manifest();
            break_it(&mut manifest);
            assert_eq!(parse(&manifest, &sizes), Err("model_manifest_malformed"));
        }
    }
}
