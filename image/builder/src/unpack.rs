// SPDX-License-Identifier: Apache-2.0
//! Takes files out of locked packages: `.deb` (deb(5)), `.tar.xz` inside one, and wheels.

mod tree;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

pub(crate) use self::tree::Growing;
use liblzma::read::XzDecoder;
use types::Sha256Digest;

use crate::fetch::Input;
use crate::files::FileError;
use crate::locks::Member;
use crate::progress::{Progress, Unit};

/// Why a file could not be taken out of a package.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The package is not of the expected form.
    #[error("{package}: {source}")]
    Format {
        /// The package's file.
        package: PathBuf,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// The package does not hold the file.
    #[error("{package} holds no {member}")]
    NoMember {
        /// The package's file.
        package: PathBuf,
        /// The path looked for.
        member: String,
    },
    /// The file is not the one that the lock states.
    #[error("{member}: expected {expected_size} bytes with digest {expected}, found {found_size} with {found}")]
    MemberMismatch {
        /// Path inside the package.
        member: String,
        /// Size in the lock.
        expected_size: u64,
        /// Digest in the lock.
        expected: Sha256Digest,
        /// Size found (one more than expected stands for any larger).
        found_size: u64,
        /// Digest found.
        found: Sha256Digest,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A locked member of a Debian package, digest checked.
///
/// # Errors
/// [`UnpackError`].
pub(crate) fn debian_member(input: &Input, member: &Member) -> Result<Vec<u8>, UnpackError> {
    with_debian_member(&input.path, &member.path, |reader| read_member(reader, member))
}

/// Files of a Debian package by their paths, each of at most `cap` bytes. The package's own digest was compared before.
///
/// # Errors
/// [`UnpackError`], also when one of them is missing or larger.
pub(crate) fn debian_files(input: &Input, paths: &[&str], cap: u64) -> Result<BTreeMap<String, Vec<u8>>, UnpackError> {
    let package = &input.path;
    let format = |source| UnpackError::Format { package: package.clone(), source };
    let missing = |member: &str| UnpackError::NoMember { package: package.clone(), member: member.to_owned() };
    let mut outer = ar::Archive::new(File::open(package).map_err(|e| FileError::at(package, e))?);
    let mut found = BTreeMap::new();
    while let Some(part) = outer.next_entry() {
        let part = part.map_err(format)?;
        if part.header().identifier() != b"data.tar.xz" {
            continue;
        }
        let mut inner = tar::Archive::new(XzDecoder::new(part));
        for entry in inner.entries().map_err(format)? {
            let mut entry = entry.map_err(format)?;
            let path = entry.path().map_err(format)?.into_owned();
            let path = path.strip_prefix(".").unwrap_or(&path);
            let Some(wanted) = paths.iter().find(|wanted| path == Path::new(wanted)) else { continue };
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let mut bytes = Vec::new();
            entry.by_ref().take(cap.saturating_add(1)).read_to_end(&mut bytes).map_err(format)?;
            if bytes.len() as u64 > cap {
                return Err(format(io::Error::other(format!("{wanted} is larger than {cap} bytes"))));
            }
            found.insert((*wanted).to_owned(), bytes);
        }
    }
    match paths.iter().find(|path| !found.contains_key(**path)) {
        None => Ok(found),
        Some(path) => Err(missing(path)),
    }
}

/// Size and digest of a file in a Debian package: what a lock would state.
///
/// # Errors
/// [`UnpackError`].
pub(crate) fn debian_member_digest(input: &Input, member: &str) -> Result<(u64, Sha256Digest), UnpackError> {
    with_debian_member(&input.path, member, |reader| {
        let mut bytes = Vec::new();
        reader.take(MAX_MEMBER).read_to_end(&mut bytes)?;
        Ok(Ok((bytes.len() as u64, Sha256Digest::of(&bytes))))
    })
}

/// A locked member of a wheel, digest checked.
///
/// # Errors
/// [`UnpackError`].
pub(crate) fn wheel_member(input: &Input, member: &Member) -> Result<Vec<u8>, UnpackError> {
    let package = &input.path;
    let format = |e: zip::result::ZipError| UnpackError::Format { package: package.clone(), source: e.into() };
    let file = File::open(package).map_err(|e| FileError::at(package, e))?;
    let mut archive = zip::ZipArchive::new(file).map_err(format)?;
    match archive.by_name(&member.path) {
        Ok(mut entry) => {
            let bytes = read_member(&mut entry, member);
            bytes.map_err(|e| UnpackError::Format { package: package.clone(), source: e })?
        }
        Err(zip::result::ZipError::FileNotFound) => {
            Err(UnpackError::NoMember { package: package.clone(), member: member.path.clone() })
        }
        Err(e) => Err(format(e)),
    }
}

/// Unpacks the files that are wanted of the `.tar.xz` file `member` of a Debian package into `target`, without the archive's
/// top directory.
///
/// # Errors
/// [`UnpackError`]; an entry whose path leaves the tree is refused.
pub(crate) fn debian_source_tree(
    input: &Input,
    member: &str,
    target: &Path,
    is_wanted: impl Fn(&Path) -> bool,
    progress: &dyn Progress,
) -> Result<(), UnpackError> {
    let unpacked = with_debian_member(&input.path, member, |reader| {
        let mut archive = tar::Archive::new(XzDecoder::new(reader));
        for (count, entry) in archive.entries()?.enumerate() {
            let mut entry = entry?;
            let path = inner_path(&entry.path()?)?;
            progress.advance("unpack source", count as u64 + 1, None, Unit::Items);
            if path.as_os_str().is_empty() || !is_wanted(&path) {
                continue;
            }
            let place = target.join(path);
            if let Some(parent) = place.parent() {
                std::fs::create_dir_all(parent)?;
            }
            entry.unpack(&place)?;
        }
        Ok(Ok(()))
    });
    progress.finish();
    unpacked
}

/// Calls `use_it` with the content of one file of a Debian package's `data.tar.xz`.
fn with_debian_member<T>(
    package: &Path,
    member: &str,
    use_it: impl FnOnce(&mut dyn Read) -> io::Result<Result<T, UnpackError>>,
) -> Result<T, UnpackError> {
    let format = |source| UnpackError::Format { package: package.to_owned(), source };
    let missing = || UnpackError::NoMember { package: package.to_owned(), member: member.to_owned() };
    let file = File::open(package).map_err(|e| FileError::at(package, e))?;
    let mut outer = ar::Archive::new(file);
    while let Some(part) = outer.next_entry() {
        let part = part.map_err(format)?;
        if part.header().identifier() != b"data.tar.xz" {
            continue;
        }
        let mut inner = tar::Archive::new(XzDecoder::new(part));
        for entry in inner.entries().map_err(format)? {
            let mut entry = entry.map_err(format)?;
            let is_it = entry.path().map_err(format)?.strip_prefix(".").is_ok_and(|p| p == Path::new(member));
            if is_it && entry.header().entry_type().is_file() {
                return use_it(&mut entry).map_err(format)?;
            }
        }
        return Err(missing());
    }
    Err(missing())
}

/// Reads at most one byte more than the lock states, and compares.
fn read_member(reader: &mut dyn Read, member: &Member) -> io::Result<Result<Vec<u8>, UnpackError>> {
    let mut bytes = Vec::new();
    reader.take(member.size.saturating_add(1)).read_to_end(&mut bytes)?;
    let found = Sha256Digest::of(&bytes);
    if bytes.len() as u64 == member.size && found == member.sha256 {
        return Ok(Ok(bytes));
    }
    Ok(Err(UnpackError::MemberMismatch {
        member: member.path.clone(),
        expected_size: member.size,
        expected: member.sha256,
        found_size: bytes.len() as u64,
        found,
    }))
}

/// The path without its first component; refuses anything but plain components.
fn inner_path(path: &Path) -> io::Result<PathBuf> {
    if path.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::other(format!("path {} leaves the archive", path.display())));
    }
    Ok(path.components().filter(|c| matches!(c, Component::Normal(_))).skip(1).collect())
}

/// Leaves out code that an x86 kernel never compiles. Makefiles and Kconfig files stay: others include them.
pub(crate) fn is_wanted_of_linux(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_code = path.extension().is_some_and(|e| ["c", "h", "S", "dts", "dtsi", "rst"].iter().any(|code| e == *code));
    let unused = UNUSED_CODE.iter().any(|directory| path.starts_with(directory));
    let other_arch = path.strip_prefix("arch").is_ok_and(|p| p.components().count() > 1 && !p.starts_with("x86"));
    let document = path.starts_with("Documentation") && !name.starts_with("Kconfig");
    !(document || is_code && (other_arch || unused))
}

const MAX_MEMBER: u64 = 256 << 20;
const UNUSED_CODE: [&str; 5] = ["drivers/gpu", "drivers/media", "drivers/staging", "sound", "tools/testing"];

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::files;
    use crate::locks::{Kind, Lock, NamedLock};
    use crate::progress::Silent;

    fn tar_xz(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(liblzma::write::XzEncoder::new(Vec::new(), 0));
        for (path, data) in files {
            let mut header = tar::Header::new_gnu();
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            builder.append(&header, *data).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap()
    }

    fn input(dir: &Path, bytes: &[u8]) -> Input {
        let path = dir.join("p.deb");
        std::fs::write(&path, bytes).unwrap();
        let lock = Lock {
            kind: Kind::Debian,
            package: "p".into(),
            version: "1".into(),
            path: "pool/p.deb".into(),
            size: bytes.len() as u64,
            sha256: Sha256Digest::of(bytes),
            licence: "x".into(),
            reason: "x".into(),
            suite: None,
            members: Vec::new(),
        };
        Input { path, lock: NamedLock { name: "p".into(), lock, lock_sha256: Sha256Digest::ZERO } }
    }

    fn deb(dir: &Path, files: &[(&str, &[u8])]) -> Input {
        let data = tar_xz(files);
        let mut builder = ar::Builder::new(Vec::new());
        builder.append(&ar::Header::new(b"debian-binary".to_vec(), 4), &b"2.0\n"[..]).unwrap();
        builder.append(&ar::Header::new(b"data.tar.xz".to_vec(), data.len() as u64), data.as_slice()).unwrap();
        input(dir, &builder.into_inner().unwrap())
    }

    fn member(path: &str, bytes: &[u8]) -> Member {
        Member { path: path.into(), name: "n".into(), size: bytes.len() as u64, sha256: Sha256Digest::of(bytes) }
    }

    #[test]
    fn a_debian_member_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let package = deb(dir.path(), &[("./usr/a", b"aaa"), ("./usr/b", b"bbb")]);
        assert_eq!(debian_member(&package, &member("usr/b", b"bbb")).unwrap(), b"bbb");
        for wrong in [b"bbc".as_slice(), b"bb", b"bbbb"] {
            let error = debian_member(&package, &member("usr/b", wrong)).unwrap_err();
            assert!(matches!(error, UnpackError::MemberMismatch { .. }), "{error}");
        }
        let error = debian_member(&package, &member("usr/c", b"x")).unwrap_err();
        assert!(matches!(error, UnpackError::NoMember { .. }));
    }

    #[test]
    fn a_source_tree_is_unpacked_without_its_top_and_cannot_leave() {
        let dir = tempfile::tempdir().unwrap();
        let good: &[(&str, &[u8])] = &[
            ("linux/Makefile", b"m"),
            ("linux/arch/arm/a.c", b"x"),
            ("linux/sound/Kconfig", b"k"),
            ("linux/arch/um/rules", b"r"),
        ];
        let package = deb(dir.path(), &[("./s.tar.xz", &tar_xz(good))]);
        let target = dir.path().join("t");
        debian_source_tree(&package, "s.tar.xz", &target, is_wanted_of_linux, &Silent).unwrap();
        let names = files::list_files(&target).unwrap();
        assert_eq!(names, ["Makefile", "arch/um/rules", "sound/Kconfig"].map(PathBuf::from));
        let package = deb(dir.path(), &[("./s.tar.xz", &tar_xz(&[("linux/../../evil", b"x")]))]);
        let error = debian_source_tree(&package, "s.tar.xz", &target, is_wanted_of_linux, &Silent).unwrap_err();
        assert!(matches!(error, UnpackError::Format { .. }), "{error}");
        assert!(!dir.path().join("evil").exists());
    }

    #[test]
    fn files_are_taken_out_by_their_paths() {
        let dir = tempfile::tempdir().unwrap();
        let package = deb(dir.path(), &[("./usr/a", b"aaa"), ("./usr/b", b"b"), ("./usr/c", b"c")]);
        let found = debian_files(&package, &["usr/b", "usr/a"], 3).unwrap();
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [("usr/a".into(), b"aaa".to_vec()), ("usr/b".into(), b"b".to_vec())]
        );
        let missing = debian_files(&package, &["usr/a", "usr/d"], 3).unwrap_err();
        assert!(matches!(missing, UnpackError::NoMember { member, .. } if member == "usr/d"));
        assert!(matches!(debian_files(&package, &["usr/a"], 2), Err(UnpackError::Format { .. })));
    }

    #[test]
    fn a_wheel_member_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        writer.start_file("m/a", zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(b"aaa").unwrap();
        let wheel = input(dir.path(), &writer.finish().unwrap().into_inner());
        assert_eq!(wheel_member(&wheel, &member("m/a", b"aaa")).unwrap(), b"aaa");
        assert!(matches!(wheel_member(&wheel, &member("m/a", b"aab")), Err(UnpackError::MemberMismatch { .. })));
        assert!(matches!(wheel_member(&wheel, &member("m/b", b"a")), Err(UnpackError::NoMember { .. })));
    }

    #[test]
    fn a_package_of_another_form_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let package = input(dir.path(), b"not an archive");
        assert!(matches!(debian_member(&package, &member("a", b"x")), Err(UnpackError::Format { .. })));
        assert!(matches!(wheel_member(&package, &member("a", b"x")), Err(UnpackError::Format { .. })));
    }
}
