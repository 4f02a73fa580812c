// SPDX-License-Identifier: Apache-2.0
//! The owner's side: a directory of files becomes a pack.

use crate::index::{DEFAULT_SEGMENT, KeyName, MAX_OBJECTS, Object, PackIndex};
use crate::manifest::{FIRST_FILE_OBJECT, FileEntry, Manifest, check_path, object_count};
use crate::open::associated_data;
use crate::source::{INDEX_FILE, OBJECTS_DIRECTORY, object_file};
use crate::stream::{Random, Scheme};
use crate::{Key, PackError, Progress};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;
use types::{Blake3Digest, Document, ModelId};

/// What a model and its key are called.
#[derive(Debug, Clone)]
pub struct Labels<'a> {
    /// The model's name.
    pub name: &'a str,
    /// The model's revision.
    pub revision: &'a str,
    /// The key's name.
    pub key: KeyName,
}

/// How a pack is cut. The default is what every owner should use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of plaintext in an object. Part of the identity.
    pub object_size: u64,
    /// Bytes of ciphertext in a segment.
    pub segment_size: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { object_size: 1 << 30, segment_size: DEFAULT_SEGMENT }
    }
}

/// A pack that was made.
#[derive(Debug)]
pub struct Created {
    /// The model's full name.
    pub model: ModelId,
    /// The public part.
    pub index: PackIndex,
    /// The encrypted part.
    pub manifest: Manifest,
    /// Hidden files and directories that were left out, relative to the input.
    pub skipped: Vec<PathBuf>,
}

/// Why a pack could not be made.
#[derive(Debug, Error)]
pub enum CreateError {
    /// Name or revision of the model, or name of the key, break the rules.
    #[error("{0}")]
    Label(String),
    /// A file of the model has a name that a pack cannot hold, or is neither a file nor a directory.
    #[error("{path}: {rule}", path = path.display())]
    Path {
        /// The file.
        path: PathBuf,
        /// The rule.
        rule: String,
    },
    /// There is no file, or there are too many.
    #[error("{0}")]
    Files(String),
    /// A file changed between the two times it was read.
    #[error("{path}: changed while it was packed", path = .0.display())]
    Changed(PathBuf),
    /// The output exists already.
    #[error("{path}: exists already", path = .0.display())]
    OutputExists(PathBuf),
    /// Encryption failed.
    #[error("encryption failed")]
    Encryption,
    /// Reading or writing failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Packs the file or directory `input` into the new directory `output`, by a temporary directory beside it. Each file
/// is read twice: for the manifest, then to encrypt it. `progress` counts both.
///
/// # Errors
/// See [`CreateError`]. Then there is nothing at `output`.
pub fn create(
    labels: &Labels<'_>,
    input: &Path,
    key: &Key,
    output: &Path,
    limits: Limits,
    progress: Progress<'_>,
) -> Result<Created, CreateError> {
    ModelId::new(labels.name, labels.revision, Blake3Digest::ZERO)
        .map_err(|error| CreateError::Label(error.to_string()))?;
    if !labels.key.is_valid() {
        return Err(CreateError::Label(
            "the key's id must be 1 to 64 characters of A-Z a-z 0-9 . _ - and its version at least 1".into(),
        ));
    }
    if output.symlink_metadata().is_ok() {
        return Err(CreateError::OutputExists(output.to_owned()));
    }
    let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let found = Found::under(input)?;
    let temporary = tempfile::Builder::new().prefix(".model-pack-").tempdir_in(parent).map_err(at(parent))?;
    let manifest = found.manifest(labels, limits, progress)?;
    let bytes = manifest.to_canonical().map_err(|error| CreateError::Files(error.to_string()))?;
    let identity = Blake3Digest::of(&bytes);
    let packer =
        Packer { key, identity, scheme: Scheme::of_pack(limits.segment_size), directory: temporary.path(), progress };
    let objects = packer.objects(&bytes, &manifest, &found)?;
    let commitment = key.commitment().map_err(|_| CreateError::Encryption)?;
    let index = PackIndex::new(identity, labels.key.clone(), commitment, limits.segment_size, objects);
    let public = index.to_canonical().map_err(|error| CreateError::Files(error.to_string()))?;
    PackIndex::parse(&public).map_err(|error: PackError| CreateError::Files(error.to_string()))?;
    write_synced(&temporary.path().join(INDEX_FILE), &public)?;
    let made = temporary.keep();
    if let Err(source) = publish(&made, output) {
        let _ = fs::remove_dir_all(&made);
        return Err(CreateError::Io { path: output.to_owned(), source });
    }
    let model = manifest.id(identity).map_err(|error| CreateError::Label(error.to_string()))?;
    Ok(Created { model, index, manifest, skipped: found.skipped })
}

/// Bytes of the files that [`create`] would pack; it reads each of them twice.
///
/// # Errors
/// A file has a name that a pack cannot hold, or there is none.
pub fn input_size(input: &Path) -> Result<u64, CreateError> {
    let found = Found::under(input)?;
    found
        .files
        .iter()
        .try_fold(0_u64, |sum, (_, path)| Ok(sum.saturating_add(fs::metadata(path).map_err(at(path))?.len())))
}

/// Temporary directories are private; a pack is for everybody.
fn publish(made: &Path, output: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(made, fs::Permissions::from_mode(0o755))?;
    File::open(made)?.sync_all()?;
    fs::rename(made, output)
}

/// The files to pack.
struct Found {
    /// Path in the manifest, path on disk; sorted.
    files: Vec<(String, PathBuf)>,
    skipped: Vec<PathBuf>,
}

impl Found {
    fn under(input: &Path) -> Result<Self, CreateError> {
        let mut found = Self { files: Vec::new(), skipped: Vec::new() };
        let metadata = fs::metadata(input).map_err(at(input))?;
        if metadata.is_dir() {
            found.walk(input, "")?;
        } else {
            let name = input.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            found.add(name.to_owned(), input.to_owned(), &metadata)?;
        }
        found.files.sort();
        if found.files.is_empty() {
            return Err(CreateError::Files(format!("{}: no files to pack", input.display())));
        }
        Ok(found)
    }

    fn walk(&mut self, directory: &Path, prefix: &str) -> Result<(), CreateError> {
        for entry in fs::read_dir(directory).map_err(at(directory))? {
            let path = entry.map_err(at(directory))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let relative = format!("{prefix}{name}");
            if name.starts_with('.') {
                self.skipped.push(PathBuf::from(relative));
                continue;
            }
            // Links to files are followed, as model caches use them; links to directories could go in circles.
            let metadata = fs::metadata(&path).map_err(at(&path))?;
            if metadata.is_dir() && !path.is_symlink() {
                self.walk(&path, &format!("{relative}/"))?;
            } else {
                self.add(relative, path, &metadata)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, relative: String, path: PathBuf, metadata: &fs::Metadata) -> Result<(), CreateError> {
        if !metadata.is_file() {
            return Err(CreateError::Path { path, rule: "is neither a file nor a directory".into() });
        }
        check_path(&relative).map_err(|rule| CreateError::Path { path: path.clone(), rule })?;
        self.files.push((relative, path));
        Ok(())
    }

    fn manifest(&self, labels: &Labels<'_>, limits: Limits, progress: Progress<'_>) -> Result<Manifest, CreateError> {
        let mut object = FIRST_FILE_OBJECT;
        let mut files = Vec::with_capacity(self.files.len());
        for (path, place) in &self.files {
            let (blake3, size) = digest(place, progress)?;
            files.push(FileEntry { blake3, object, path: path.clone(), size });
            let count = u32::try_from(object_count(size, limits.object_size)).unwrap_or(u32::MAX);
            object = object.saturating_add(count);
        }
        if usize::try_from(object).map_or(true, |objects| objects > MAX_OBJECTS) {
            return Err(CreateError::Files(format!(
                "the model needs {object} objects, at most {MAX_OBJECTS} are allowed"
            )));
        }
        let manifest = Manifest::new(labels.name, labels.revision, limits.object_size, files);
        manifest.check_files().map_err(|error| CreateError::Files(error.to_string()))?;
        Ok(manifest)
    }
}

fn digest(path: &Path, progress: Progress<'_>) -> Result<(Blake3Digest, u64), CreateError> {
    let mut file = File::open(path).map_err(at(path))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut size = 0_u64;
    loop {
        let length = file.read(&mut buffer).map_err(at(path))?;
        if length == 0 {
            return Ok((Blake3Digest::from_bytes(*hasher.finalize().as_bytes()), size));
        }
        hasher.update(buffer.get(..length).unwrap_or_default());
        let done = u64::try_from(length).unwrap_or(u64::MAX);
        size = size.saturating_add(done);
        progress(done);
    }
}

/// Writes objects into the temporary directory.
struct Packer<'a> {
    key: &'a Key,
    identity: Blake3Digest,
    scheme: Scheme,
    directory: &'a Path,
    progress: Progress<'a>,
}

impl Packer<'_> {
    fn objects(&self, manifest_bytes: &[u8], manifest: &Manifest, found: &Found) -> Result<Vec<Object>, CreateError> {
        let objects_directory = self.directory.join(OBJECTS_DIRECTORY);
        fs::create_dir(&objects_directory).map_err(at(&objects_directory))?;
        let length = u64::try_from(manifest_bytes.len()).unwrap_or(u64::MAX);
        let mut objects = vec![self.object(0, length, &mut &*manifest_bytes, Path::new("manifest"))?];
        for (entry, (_, path)) in manifest.files.iter().zip(&found.files) {
            let mut file = Hashed { inner: File::open(path).map_err(at(path))?, hasher: blake3::Hasher::new() };
            for (number, length) in manifest.parts(entry) {
                objects.push(self.object(number, length, &mut file, path)?);
            }
            let is_longer = file.inner.read(&mut [0]).map_err(at(path))? > 0;
            if is_longer || file.hasher.finalize().as_bytes() != entry.blake3.as_bytes() {
                return Err(CreateError::Changed(path.clone()));
            }
        }
        File::open(&objects_directory).and_then(|directory| directory.sync_all()).map_err(at(&objects_directory))?;
        Ok(objects)
    }

    /// Encrypts `length` bytes of `input` as object `number`.
    fn object(&self, number: u32, length: u64, input: &mut dyn Read, name: &Path) -> Result<Object, CreateError> {
        let path = self.directory.join(object_file(number));
        let random = Random::new().map_err(|_| CreateError::Encryption)?;
        let associated = associated_data(&self.identity, number);
        let (header, mut segments) =
            self.scheme.seal(self.key.bytes(), &associated, &random).map_err(|_| CreateError::Encryption)?;
        let mut out = Output::create(&path)?;
        out.write(&header)?;
        let mut left = length;
        let mut is_first = true;
        let mut segment = Vec::with_capacity(self.scheme.segment_length());
        loop {
            let room = u64::try_from(self.scheme.plaintext_segment(is_first)).unwrap_or(u64::MAX);
            let size = left.min(room);
            segment.resize(usize::try_from(size).unwrap_or(usize::MAX), 0);
            input.read_exact(&mut segment).map_err(|error| changed_or_io(error, name))?;
            left = left.saturating_sub(size);
            is_first = false;
            segments.seal(&mut segment, left == 0).map_err(|_| CreateError::Encryption)?;
            out.write(&segment)?;
            (self.progress)(size);
            if left == 0 {
                return out.finish(number);
            }
        }
    }
}

/// A file that got shorter is a file that changed.
fn changed_or_io(error: io::Error, path: &Path) -> CreateError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => CreateError::Changed(path.to_owned()),
        _ => at(path)(error),
    }
}

struct Hashed {
    inner: File,
    hasher: blake3::Hasher,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..length).unwrap_or_default());
        Ok(length)
    }
}

/// An object as it is written.
struct Output<'p> {
    path: &'p Path,
    file: File,
    hasher: blake3::Hasher,
    length: u64,
}

impl<'p> Output<'p> {
    fn create(path: &'p Path) -> Result<Self, CreateError> {
        let file = File::create_new(path).map_err(at(path))?;
        Ok(Self { path, file, hasher: blake3::Hasher::new(), length: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CreateError> {
        self.file.write_all(bytes).map_err(at(self.path))?;
        self.hasher.update(bytes);
        self.length = self.length.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    fn finish(self, number: u32) -> Result<Object, CreateError> {
        self.file.sync_all().map_err(at(self.path))?;
        let blake3 = Blake3Digest::from_bytes(*self.hasher.finalize().as_bytes());
        Ok(Object { blake3, index: number, length: self.length })
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), CreateError> {
    let mut file = File::create_new(path).map_err(at(path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CreateError {
    let path = path.to_owned();
    |source| CreateError::Io { path, source }
}

const READ_BYTES: usize = 1 << 20;
