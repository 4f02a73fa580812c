// SPDX-License-Identifier: Apache-2.0
//! Unpacks whole packages into a tree: Debian packages one over the other, Rust packages each by itself.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use flate2::read::GzDecoder;
use liblzma::read::XzDecoder;
use tar::EntryType;

use super::UnpackError;
use crate::files::FileError;

/// A tree under construction. Paths cannot leave it: not by their components, and not through a link.
pub(crate) struct Growing<'a> {
    root: &'a Path,
    /// Directories known to be real ones.
    directories: BTreeSet<PathBuf>,
}

impl<'a> Growing<'a> {
    /// Grows in the directory `root`.
    pub(crate) fn new(root: &'a Path) -> Self {
        Self { root, directories: BTreeSet::new() }
    }

    /// Unpacks the files of a Debian package, but its documentation, or exactly those at and below the paths that are named:
    /// each must be there. Maintainer scripts are not run.
    ///
    /// # Errors
    /// [`UnpackError`], also for a device, or a file that another package has brought.
    pub(crate) fn debian(&mut self, package: &Path, only: Option<&[String]>) -> Result<(), UnpackError> {
        let file = File::open(package).map_err(|e| FileError::at(package, e))?;
        let mut outer = ar::Archive::new(io::BufReader::new(file));
        let format = |source| UnpackError::Format { package: package.to_owned(), source };
        while let Some(part) = outer.next_entry() {
            let part = part.map_err(format)?;
            match part.header().identifier() {
                b"data.tar.xz" => {
                    let reader = XzDecoder::new(part);
                    return match only {
                        None => self.archive(reader, debian_path),
                        Some(paths) => self.parts(reader, paths),
                    }
                    .map_err(format);
                }
                name if name.starts_with(b"data.tar") => {
                    let name = String::from_utf8_lossy(name).into_owned();
                    return Err(format(io::Error::other(format!("{name} is not compressed with xz"))));
                }
                _ => {}
            }
        }
        Err(UnpackError::NoMember { package: package.to_owned(), member: "data.tar.xz".to_owned() })
    }

    /// Unpacks a Rust package (a `.crate` file) without its top directory.
    ///
    /// # Errors
    /// [`UnpackError`].
    pub(crate) fn rust_package(&mut self, package: &Path) -> Result<(), UnpackError> {
        let file = File::open(package).map_err(|e| FileError::at(package, e))?;
        self.archive(GzDecoder::new(io::BufReader::new(file)), |path| {
            let inner: PathBuf = path.components().skip(1).collect();
            (!inner.as_os_str().is_empty()).then_some(inner)
        })
        .map_err(|source| UnpackError::Format { package: package.to_owned(), source })
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// When something stands there.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> Result<(), UnpackError> {
        let place = self.root.join(path);
        self.parents(Path::new(path))
            .and_then(|()| symlink(target, &place))
            .map_err(|e| FileError::at(&place, e).into())
    }

    /// A file with a fixed text.
    ///
    /// # Errors
    /// When something stands there.
    pub(crate) fn text(&mut self, path: &str, text: &str) -> Result<(), UnpackError> {
        let place = self.root.join(path);
        let write = || {
            let mut file = File::options().write(true).create_new(true).mode(0o644).open(&place)?;
            io::Write::write_all(&mut file, text.as_bytes())
        };
        self.parents(Path::new(path)).and_then(|()| write()).map_err(|e| FileError::at(&place, e).into())
    }

    /// A directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn directory(&mut self, path: &str) -> Result<(), UnpackError> {
        self.real_directory(Path::new(path)).map_err(|e| FileError::at(&self.root.join(path), e).into())
    }

    /// Unpacks what stands at and below `paths`.
    fn parts(&mut self, reader: impl Read, paths: &[String]) -> io::Result<()> {
        let missing = RefCell::new(paths.iter().map(Path::new).collect::<BTreeSet<_>>());
        self.archive(reader, |path| {
            let wanted = paths.iter().map(Path::new).find(|wanted| path.starts_with(wanted))?;
            missing.borrow_mut().remove(wanted);
            merged(path)
        })?;
        match missing.borrow().first() {
            None => Ok(()),
            Some(path) => Err(io::Error::other(format!("{} is not in it", path.display()))),
        }
    }

    fn archive(&mut self, reader: impl Read, place: impl Fn(&Path) -> Option<PathBuf>) -> io::Result<()> {
        let mut archive = tar::Archive::new(reader);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = plain(&entry.path()?)?;
            let Some(path) = place(&path) else { continue };
            self.entry(&mut entry, &path, &place)
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        entry: &mut tar::Entry<'_, impl Read>,
        path: &Path,
        place: impl Fn(&Path) -> Option<PathBuf>,
    ) -> io::Result<()> {
        let target = self.root.join(path);
        match entry.header().entry_type() {
            EntryType::Directory => self.real_directory(path),
            EntryType::Symlink => {
                self.parents(path)?;
                let name = entry.link_name()?.ok_or_else(|| io::Error::other("a link without a target"))?;
                symlink(name, target)
            }
            EntryType::Link => {
                self.parents(path)?;
                let name = plain(&entry.link_name()?.ok_or_else(|| io::Error::other("a link without a target"))?)?;
                let source = place(&name).ok_or_else(|| io::Error::other("a link to a file that is left out"))?;
                self.parents(&source)?;
                std::fs::hard_link(self.root.join(source), target)
            }
            EntryType::Regular | EntryType::Continuous => {
                self.parents(path)?;
                let mode = if entry.header().mode()? & 0o111 == 0 { 0o644 } else { 0o755 };
                let mut file = File::options().write(true).create_new(true).mode(mode).open(target)?;
                io::copy(entry, &mut file).map(drop)
            }
            other => Err(io::Error::other(format!("{other:?} is neither file, link nor directory"))),
        }
    }

    fn parents(&mut self, path: &Path) -> io::Result<()> {
        path.parent().map_or(Ok(()), |parent| self.real_directory(parent))
    }

    /// Makes a directory with its parents; refuses to go through a link.
    fn real_directory(&mut self, path: &Path) -> io::Result<()> {
        if path.as_os_str().is_empty() || self.directories.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        let place = self.root.join(path);
        match std::fs::symlink_metadata(&place) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(io::Error::other("a directory's path leads through a link or file")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => std::fs::create_dir(&place)?,
            Err(e) => return Err(e),
        }
        self.directories.insert(path.to_owned());
        Ok(())
    }
}

/// Where a path of a Debian package goes: `/usr` holds everything (merged `/usr`).
fn merged(path: &Path) -> Option<PathBuf> {
    let merged = ["bin", "sbin", "lib", "lib64"];
    match path.components().next()? {
        Component::Normal(first) if merged.iter().any(|name| first == *name) => {
            (path.components().count() > 1).then(|| Path::new("usr").join(path))
        }
        _ => Some(path.to_owned()),
    }
}

/// As [`merged`]; documentation is left out.
fn debian_path(path: &Path) -> Option<PathBuf> {
    let path = merged(path)?;
    let left_out = LEFT_OUT.iter().any(|directory| path.starts_with(directory));
    (!left_out).then_some(path)
}

/// The path without `.`; refuses anything but plain components.
fn plain(path: &Path) -> io::Result<PathBuf> {
    if path.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::other(format!("path {} leaves the archive", path.display())));
    }
    Ok(path.components().filter(|c| matches!(c, Component::Normal(_))).collect())
}

/// Documentation, translations and settings of a running system.
const LEFT_OUT: [&str; 12] = [
    "etc",
    "usr/share/bash-completion",
    "usr/share/doc",
    "usr/share/doc-base",
    "usr/share/gcc",
    "usr/share/gdb",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/vim",
    "var",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files;

    enum Item<'a> {
        File(&'a str, u32, &'a [u8]),
        Link(EntryType, &'a str, &'a str),
    }

    fn tar(items: &[Item<'_>]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for item in items {
            let mut header = tar::Header::new_gnu();
            let (path, mode, data, kind) = match item {
                Item::File(path, mode, data) => (path, *mode, *data, EntryType::Regular),
                Item::Link(kind, path, _) => (path, 0o777, &b""[..], *kind),
            };
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            if let Item::Link(_, _, target) = item {
                header.as_gnu_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
            }
            header.set_entry_type(kind);
            header.set_size(data.len() as u64);
            header.set_mode(mode);
            header.set_cksum();
            builder.append(&header, data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn grow(items: &[Item<'_>]) -> (tempfile::TempDir, io::Result<()>) {
        let dir = tempfile::tempdir().unwrap();
        let result = Growing::new(dir.path()).archive(tar(items).as_slice(), debian_path);
        (dir, result)
    }

    #[test]
    fn usr_holds_everything_but_documentation() {
        let (dir, result) = grow(&[
            Item::File("./lib/a", 0o755, b"a"),
            Item::File("./usr/lib/b", 0o4644, b"b"),
            Item::File("./usr/share/doc/c", 0o644, b"c"),
            Item::Link(EntryType::Symlink, "./bin", "usr/bin"),
            Item::Link(EntryType::Link, "./usr/lib/d", "./lib/a"),
        ]);
        result.unwrap();
        let names = files::list_files(dir.path()).unwrap();
        assert_eq!(names, ["usr/lib/a", "usr/lib/b", "usr/lib/d"].map(PathBuf::from));
        use std::os::unix::fs::PermissionsExt as _;
        let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("usr/lib/a") & 0o100, mode("usr/lib/b") & 0o7111), (0o100, 0));
    }

    #[test]
    fn only_what_is_named_is_unpacked_and_all_of_it_must_be_there() {
        let items = [
            Item::File("./etc/settings", 0o644, b"s"),
            Item::File("./usr/lib/a/one", 0o644, b"1"),
            Item::File("./usr/lib/ab", 0o644, b"2"),
            Item::File("./lib/two", 0o644, b"3"),
        ];
        let parts = |paths: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
            let result = Growing::new(dir.path()).parts(tar(&items).as_slice(), &paths);
            result.map(|()| files::list_files(dir.path()).unwrap())
        };
        let found = parts(&["etc/settings", "usr/lib/a", "lib/two"]).unwrap();
        assert_eq!(found, ["etc/settings", "usr/lib/a/one", "usr/lib/two"].map(PathBuf::from));
        let error = parts(&["usr/lib/a", "usr/lib/b"]).unwrap_err();
        assert_eq!(error.to_string(), "usr/lib/b is not in it");
    }

    #[test]
    fn nothing_leaves_the_tree_or_replaces_a_file() {
        let outside = tempfile::tempdir().unwrap();
        let out = outside.path().to_str().unwrap();
        for items in [
            vec![Item::File("./../evil", 0o644, b"x")],
            vec![Item::Link(EntryType::Symlink, "./usr/l", out), Item::File("./usr/l/evil", 0o644, b"x")],
            vec![Item::File("./usr/a", 0o644, b"x"), Item::File("./usr/a", 0o644, b"y")],
            vec![Item::Link(EntryType::Link, "./usr/h", "../../evil")],
            vec![Item::Link(EntryType::Char, "./usr/null", "")],
        ] {
            let (_dir, result) = grow(&items);
            assert!(result.is_err());
            assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        }
    }
}
