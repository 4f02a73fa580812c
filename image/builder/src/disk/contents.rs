// SPDX-License-Identifier: Apache-2.0
//! What stands on a verified disk, file by file, and whether it fits together.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use types::Sha256Digest;

use super::{MODULES, ORDER};
use crate::elf;
use crate::files::FileError;
use crate::image::{RootEntry, RootNode};

/// Why what stands on a disk does not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentsError {
    /// A path is not of the form `/a/b` with plain components.
    #[error("path {0:?} is not absolute and normal")]
    Path(String),
    /// A path was given twice, or as a file and as a directory.
    #[error("path {0:?} was given twice")]
    Duplicate(String),
    /// A library that a file needs is not there.
    #[error("{file} needs the library {library}, which is not on the disk")]
    LibraryMissing {
        /// The file.
        file: String,
        /// The library.
        library: String,
    },
    /// The loader that a program names is not there.
    #[error("{file} names the loader {loader}, which is not on the disk or not executable")]
    LoaderMissing {
        /// The file.
        file: String,
        /// The loader.
        loader: String,
    },
    /// A program or library is malformed.
    #[error("{file}: {reason}")]
    NotLoadable {
        /// The file.
        file: String,
        /// What it shows.
        reason: &'static str,
    },
    /// The load order names a module that is not there, or leaves one out.
    #[error("module {0} is either not on the disk or not in the load order")]
    Module(String),
}

/// Where a file comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// A package, unchanged.
    Package(String),
    /// A package, compiled for the kernel.
    Module(String),
    /// This repository's programs.
    Program(String),
    /// The build itself.
    Build,
}

struct Content {
    executable: bool,
    origin: Origin,
    bytes: Vec<u8>,
}

/// Files by path; `None` stands for a directory.
pub(super) struct Contents {
    nodes: BTreeMap<String, Option<Content>>,
}

impl Contents {
    /// Nothing but the root.
    pub(super) fn new() -> Self {
        Self { nodes: BTreeMap::new() }
    }

    /// Adds a file, and the directories above it.
    ///
    /// # Errors
    /// [`ContentsError::Path`] or [`ContentsError::Duplicate`].
    pub(super) fn add(
        &mut self,
        path: &str,
        executable: bool,
        origin: Origin,
        bytes: Vec<u8>,
    ) -> Result<(), ContentsError> {
        let plain = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(|b| b.is_ascii_graphic());
        let relative = path.strip_prefix('/').filter(|relative| relative.split('/').all(plain));
        let relative = relative.ok_or_else(|| ContentsError::Path(path.to_owned()))?;
        let duplicate = || ContentsError::Duplicate(path.to_owned());
        for (index, _) in relative.match_indices('/') {
            let directory = relative.get(..index).unwrap_or_default();
            if self.nodes.entry(format!("/{directory}")).or_insert(None).is_some() {
                return Err(duplicate());
            }
        }
        match self.nodes.insert(path.to_owned(), Some(Content { executable, origin, bytes })) {
            None => Ok(()),
            Some(_) => Err(duplicate()),
        }
    }

    /// Whether every program and library finds what it needs, and the load order names the modules that are there.
    ///
    /// # Errors
    /// [`ContentsError`].
    pub(super) fn check(&self) -> Result<(), ContentsError> {
        let files = self.nodes.iter().filter_map(|(path, node)| Some((path, node.as_ref()?)));
        for (path, content) in files.filter(|(path, _)| !path.starts_with(MODULES)) {
            if content.bytes.starts_with(b"\x7fELF") && !path.starts_with(FIRMWARE) {
                self.check_needs(path, content)?;
            }
        }
        self.check_order()
    }

    fn check_needs(&self, path: &str, content: &Content) -> Result<(), ContentsError> {
        let needs = elf::needs(&content.bytes)
            .map_err(|reason| ContentsError::NotLoadable { file: path.to_owned(), reason })?;
        if needs.beside && !LIBRARIES.iter().any(|place| Path::new(path).parent() == Some(Path::new(place))) {
            let reason = "it looks beside itself, and does not stand with the libraries";
            return Err(ContentsError::NotLoadable { file: path.to_owned(), reason });
        }
        let is_there = |path: &String| matches!(self.nodes.get(path), Some(Some(_)));
        let is_program = |path: &String| matches!(self.nodes.get(path), Some(Some(found)) if found.executable);
        if let Some(loader) = needs.linker.filter(|loader| !is_program(loader)) {
            return Err(ContentsError::LoaderMissing { file: path.to_owned(), loader });
        }
        let found = |library: &String| LIBRARIES.iter().any(|place| is_there(&format!("{place}/{library}")));
        match needs.libraries.into_iter().find(|library| !found(library)) {
            None => Ok(()),
            Some(library) => Err(ContentsError::LibraryMissing { file: path.to_owned(), library }),
        }
    }

    fn check_order(&self) -> Result<(), ContentsError> {
        let order = self.nodes.get(&format!("{MODULES}/{ORDER}")).and_then(Option::as_ref);
        let order = String::from_utf8_lossy(order.map_or(&[], |content| &content.bytes));
        let mut ordered: Vec<&str> = order.lines().collect();
        ordered.sort_unstable();
        let modules = self.nodes.keys().filter_map(|path| path.strip_prefix(MODULES)?.strip_prefix('/'));
        let modules: Vec<&str> = modules.filter(|name| *name != ORDER).collect();
        let left = ordered.iter().find(|name| !modules.contains(name));
        let twice = ordered.windows(2).find_map(|pair| pair.first().filter(|first| pair.last() == Some(*first)));
        let other = left.or(twice).or_else(|| modules.iter().find(|name| !ordered.contains(name)));
        other.map_or(Ok(()), |name| Err(ContentsError::Module((*name).to_owned())))
    }

    /// The list of what is there, with digests.
    pub(super) fn entries(&self) -> Vec<RootEntry> {
        let entry = |(path, node): (&String, &Option<Content>)| {
            let mode = format!("{:04o}", permissions(node.as_ref()));
            RootEntry { path: path.clone(), mode, node: node.as_ref().map_or(RootNode::Directory, describe) }
        };
        self.nodes.iter().map(entry).collect()
    }

    /// Writes everything as a tar file (POSIX ustar), sorted, of user and group 0 and one date.
    ///
    /// # Errors
    /// [`FileError`].
    pub(super) fn archive(&self, path: &Path, date: u64) -> Result<(), FileError> {
        let at = |e| FileError::at(path, e);
        let file = io::BufWriter::with_capacity(1 << 20, File::create(path).map_err(at)?);
        let mut builder = tar::Builder::new(file);
        let root = [(".", None)].into_iter();
        let nodes = self.nodes.iter().map(|(path, node)| (path.trim_start_matches('/'), node.as_ref()));
        for (name, node) in root.chain(nodes) {
            let bytes = node.map_or(&[][..], |content| &content.bytes);
            builder.append(&header(name, node, date).map_err(at)?, bytes).map_err(at)?;
        }
        builder.into_inner().and_then(|mut file| file.flush()).map_err(at)
    }
}

fn header(name: &str, node: Option<&Content>, date: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(if node.is_some() { tar::EntryType::Regular } else { tar::EntryType::Directory });
    header.set_path(name)?;
    header.set_size(node.map_or(0, |content| content.bytes.len() as u64));
    header.set_mode(permissions(node));
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(date);
    header.set_cksum();
    Ok(header)
}

fn permissions(node: Option<&Content>) -> u32 {
    match node {
        Some(content) if !content.executable => 0o644,
        _ => 0o755,
    }
}

fn describe(content: &Content) -> RootNode {
    let (size, sha256) = (content.bytes.len() as u64, Sha256Digest::of(&content.bytes));
    match content.origin.clone() {
        Origin::Package(package) => RootNode::Packaged { package, size, sha256 },
        Origin::Module(package) => RootNode::Module { package, size, sha256 },
        Origin::Program(package) => RootNode::Program { package, size, sha256 },
        Origin::Build => RootNode::Generated { size, sha256 },
    }
}

/// Where Debian's loader looks without a cache of its own.
const LIBRARIES: [&str; 2] = ["/usr/lib/x86_64-linux-gnu", "/lib64"];
/// Programs of other processors.
const FIRMWARE: &str = "/lib/firmware/";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests::{dynamic, with_path};

    /// A disk with a program, its loader and its library, and two modules in order.
    fn contents(without: &str, order: &str) -> Contents {
        let mut contents = Contents::new();
        let program = dynamic("/lib64/ld.so.2", &["liba.so.1"], None);
        let library = dynamic("/lib64/ld.so.2", &["ld.so.2"], None);
        let package = || Origin::Package("p".into());
        for (path, executable, bytes) in [
            ("/usr/bin/program", true, program),
            ("/usr/lib/x86_64-linux-gnu/liba.so.1", false, library),
            ("/lib64/ld.so.2", true, b"\x7fELF\x02\x01".to_vec()),
            ("/lib/firmware/f", false, b"\x7fELF of another processor".to_vec()),
            ("/lib/modules/a.ko", false, b"\x7fELF".to_vec()),
            ("/lib/modules/b.ko", false, b"\x7fELF".to_vec()),
            ("/lib/modules/order", false, order.as_bytes().to_vec()),
        ] {
            let bytes = if path == "/lib64/ld.so.2" { dynamic("/lib64/ld.so.2", &[], None) } else { bytes };
            if path != without {
                contents.add(path, executable, package(), bytes).unwrap();
            }
        }
        contents
    }

    #[test]
    fn a_missing_library_or_loader_is_named() {
        contents("", "b.ko\na.ko\n").check().unwrap();
        let file = "/usr/bin/program".to_owned();
        let missing = contents("/usr/lib/x86_64-linux-gnu/liba.so.1", "a.ko\nb.ko\n").check();
        assert_eq!(missing, Err(ContentsError::LibraryMissing { file: file.clone(), library: "liba.so.1".into() }));
        let missing = contents("/lib64/ld.so.2", "a.ko\nb.ko\n").check();
        assert_eq!(missing, Err(ContentsError::LoaderMissing { file, loader: "/lib64/ld.so.2".into() }));
        let mut broken = contents("/usr/bin/program", "a.ko\nb.ko\n");
        broken.add("/usr/bin/program", true, Origin::Build, b"\x7fELF\x02\x01".to_vec()).unwrap();
        assert!(matches!(broken.check(), Err(ContentsError::NotLoadable { .. })));
    }

    #[test]
    fn only_libraries_look_beside_themselves() {
        let beside = with_path("/lib64/ld.so.2", &["liba.so.1"], Some((29, "$ORIGIN")));
        for (path, good) in [("/usr/lib/x86_64-linux-gnu/libc.so.1", true), ("/usr/lib/other/libc.so.1", false)] {
            let mut contents = contents("", "a.ko\nb.ko\n");
            contents.add(path, false, Origin::Build, beside.clone()).unwrap();
            let checked = contents.check();
            assert_eq!(checked.is_ok(), good, "{path}: {checked:?}");
        }
    }

    #[test]
    fn the_load_order_names_each_module_once_and_no_other() {
        for (without, order, named) in [
            ("/lib/modules/b.ko", "a.ko\nb.ko\n", "b.ko"),
            ("", "a.ko\n", "b.ko"),
            ("", "a.ko\nb.ko\na.ko\n", "a.ko"),
            ("", "a.ko\nb.ko\n../c.ko\n", "../c.ko"),
            ("/lib/modules/order", "", "a.ko"),
        ] {
            assert_eq!(contents(without, order).check(), Err(ContentsError::Module(named.into())), "{order:?}");
        }
    }

    #[test]
    fn paths_are_plain_and_given_once() {
        let mut contents = contents("", "");
        let mut add = |path: &str| contents.add(path, false, Origin::Build, Vec::new());
        for path in ["a", "/", "/a//b", "/a/../b", "/a b"] {
            assert_eq!(add(path), Err(ContentsError::Path(path.into())), "{path:?}");
        }
        for path in ["/usr/bin/program", "/usr/bin/program/x", "/usr/bin"] {
            assert_eq!(add(path), Err(ContentsError::Duplicate(path.into())), "{path:?}");
        }
    }

    #[test]
    fn archive_and_list_say_the_same_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = dir.path().join(name);
            contents("", "a.ko\nb.ko\n").archive(&path, 7).unwrap();
            std::fs::read(path).unwrap()
        };
        assert_eq!(write("a"), write("b"));
        let bytes = write("a");
        let mut archive = tar::Archive::new(bytes.as_slice());
        let found: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (7, 0, 0));
                let path = entry.path().unwrap().to_string_lossy().trim_end_matches('/').to_owned();
                (format!("/{path}"), format!("{:04o}", header.mode().unwrap()))
            })
            .collect();
        let listed = contents("", "a.ko\nb.ko\n").entries();
        let mut listed: Vec<_> = listed.into_iter().map(|entry| (entry.path, entry.mode)).collect();
        listed.insert(0, ("/.".into(), "0755".into()));
        assert_eq!(found, listed);
    }
}
