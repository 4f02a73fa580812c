// SPDX-License-Identifier: Apache-2.0
//! A deterministic writer for the `newc` archive that the kernel unpacks as its first root
//! (`Documentation/driver-api/early-userspace/buffer-format.rst` in Linux).
//!
//! The bytes depend on paths, permissions and contents alone: entries are sorted, owners and times are zero, inodes are
//! numbered in order. No file system is read, so neither umask nor directory order can enter.

use std::collections::BTreeMap;

/// Why an archive could not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NewcError {
    /// A path is not of the form `/a/b` with plain components.
    #[error("path {0:?} is not absolute and normal")]
    Path(String),
    /// A path was given twice.
    #[error("path {0:?} was given twice")]
    Duplicate(String),
    /// A path's directory was not given.
    #[error("path {0:?} has no directory entry above it")]
    NoParent(String),
    /// A file is larger than the format's 32-bit size field.
    #[error("file {0:?} is larger than the format allows")]
    TooLarge(String),
}

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Directory,
    File(Vec<u8>),
    CharDevice { major: u32, minor: u32 },
    Link(String),
}

/// An archive under construction: starts empty, every path is added by name.
#[derive(Debug, Default, Clone)]
pub struct Archive {
    entries: BTreeMap<String, (u32, Node)>,
}

impl Archive {
    /// An archive without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory, mode 0755.
    ///
    /// # Errors
    /// [`NewcError::Path`] or [`NewcError::Duplicate`].
    pub fn directory(&mut self, path: &str) -> Result<(), NewcError> {
        self.add(path, 0o755, Node::Directory)
    }

    /// Adds a regular file; `permissions` are its lowest nine bits.
    ///
    /// # Errors
    /// [`NewcError::Path`], [`NewcError::Duplicate`] or [`NewcError::TooLarge`].
    pub fn file(&mut self, path: &str, permissions: u32, contents: Vec<u8>) -> Result<(), NewcError> {
        if u32::try_from(contents.len()).is_err() {
            return Err(NewcError::TooLarge(path.to_owned()));
        }
        self.add(path, permissions, Node::File(contents))
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// [`NewcError::Path`] or [`NewcError::Duplicate`].
    pub fn char_device(&mut self, path: &str, permissions: u32, major: u32, minor: u32) -> Result<(), NewcError> {
        self.add(path, permissions, Node::CharDevice { major, minor })
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// [`NewcError::Path`], also for a target that is not an absolute and normal path, or [`NewcError::Duplicate`].
    pub fn link(&mut self, path: &str, target: &str) -> Result<(), NewcError> {
        normal(target)?;
        self.add(path, 0o777, Node::Link(target.to_owned()))
    }

    /// The archive's bytes.
    ///
    /// # Errors
    /// [`NewcError::NoParent`] when a path's directory is missing.
    pub fn to_bytes(&self) -> Result<Vec<u8>, NewcError> {
        let mut out = Vec::new();
        let mut inode = 0;
        for (path, (permissions, node)) in &self.entries {
            if let Some((parent, _)) = path.rsplit_once('/')
                && !matches!(self.entries.get(parent), Some((_, Node::Directory)))
            {
                return Err(NewcError::NoParent(path.clone()));
            }
            inode += 1;
            write_entry(&mut out, path, inode, *permissions, node);
        }
        write_entry(&mut out, TRAILER, 0, 0, &Node::File(Vec::new()));
        Ok(out)
    }

    fn add(&mut self, path: &str, permissions: u32, node: Node) -> Result<(), NewcError> {
        let relative = normal(path)?;
        if self.entries.insert(relative.to_owned(), (permissions & 0o777, node)).is_some() {
            return Err(NewcError::Duplicate(path.to_owned()));
        }
        Ok(())
    }
}

/// The path without the slash that it begins with.
fn normal(path: &str) -> Result<&str, NewcError> {
    let plain = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(|b| b.is_ascii_graphic());
    let relative = path.strip_prefix('/').filter(|relative| relative.split('/').all(plain) && *relative != TRAILER);
    relative.ok_or_else(|| NewcError::Path(path.to_owned()))
}

fn write_entry(out: &mut Vec<u8>, path: &str, inode: u32, permissions: u32, node: &Node) {
    let (kind, links, data, (major, minor)) = match node {
        Node::Directory => (S_IFDIR, 2, &[][..], (0, 0)),
        Node::File(data) if inode == 0 => (0, 1, data.as_slice(), (0, 0)),
        Node::File(data) => (S_IFREG, 1, data.as_slice(), (0, 0)),
        Node::CharDevice { major, minor } => (S_IFCHR, 1, &[][..], (*major, *minor)),
        Node::Link(target) => (S_IFLNK, 1, target.as_bytes(), (0, 0)),
    };
    // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let name_size = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
    let fields = [inode, kind | permissions, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
    out.extend_from_slice(MAGIC);
    for field in fields {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(data);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

const MAGIC: &[u8] = b"070701";
const TRAILER: &str = "TRAILER!!!";
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFLNK: u32 = 0o120_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(order: &[usize]) -> Archive {
        let mut archive = Archive::new();
        for step in order {
            match step {
                0 => archive.directory("/dev").unwrap(),
                1 => archive.char_device("/dev/null", 0o666, 1, 3).unwrap(),
                2 => archive.file("/init", 0o755, b"abcde".to_vec()).unwrap(),
                _ => archive.directory("/dev-x").unwrap(),
            }
        }
        archive
    }

    #[test]
    fn bytes_do_not_depend_on_order() {
        let a = sample(&[0, 1, 2, 3]).to_bytes().unwrap();
        assert_eq!(a, sample(&[3, 2, 1, 0]).to_bytes().unwrap());
        assert_eq!(a.len() % 4, 0);
    }

    #[test]
    fn golden_bytes() {
        let mut archive = Archive::new();
        archive.file("/init", 0o755, b"abcde".to_vec()).unwrap();
        // After the magic, eight digits each: inode, mode, owner, group, links, time, size, two devices, name's size, check.
        let file = "00000001 000081ED 00000000 00000000 00000001 00000000 00000005 \
                    00000000 00000000 00000000 00000000 00000005 00000000";
        let trailer = "00000000 00000000 00000000 00000000 00000001 00000000 00000000 \
                       00000000 00000000 00000000 00000000 0000000B 00000000";
        let expected = format!("070701{file}init\0\0abcde\0\0\0070701{trailer}TRAILER!!!\0\0\0\0").replace(' ', "");
        assert_eq!(archive.to_bytes().unwrap(), expected.as_bytes());
    }

    #[test]
    fn a_link_holds_its_target_without_an_end_mark() {
        let mut archive = Archive::new();
        archive.link("/lib", "/gpu/lib").unwrap();
        let link = "00000001 0000A1FF 00000000 00000000 00000001 00000000 00000008 \
                    00000000 00000000 00000000 00000000 00000004 00000000";
        let expected = format!("070701{link}lib\0\0\0/gpu/lib070701").replace(' ', "");
        assert!(archive.to_bytes().unwrap().starts_with(expected.as_bytes()));
        for target in ["gpu/lib", "/gpu/../lib", "/", ""] {
            assert_eq!(archive.link("/l", target), Err(NewcError::Path(target.to_owned())), "{target:?}");
        }
        // Nothing is put behind a link.
        archive.file("/lib/a", 0o644, Vec::new()).unwrap();
        assert_eq!(archive.to_bytes(), Err(NewcError::NoParent("lib/a".to_owned())));
    }

    #[test]
    fn refuses_bad_paths() {
        let mut archive = Archive::new();
        for path in ["init", "/", "/a//b", "/a/../b", "/a\nb", "/a b", "/TRAILER!!!"] {
            assert_eq!(archive.file(path, 0o644, Vec::new()), Err(NewcError::Path(path.to_owned())), "{path:?}");
        }
    }

    #[test]
    fn refuses_duplicates_and_orphans() {
        let mut archive = sample(&[0, 2]);
        assert_eq!(archive.directory("/init"), Err(NewcError::Duplicate("/init".to_owned())));
        archive.file("/bin/serve", 0o755, Vec::new()).unwrap();
        assert_eq!(archive.to_bytes(), Err(NewcError::NoParent("bin/serve".to_owned())));
    }

    #[test]
    fn a_file_is_no_directory() {
        let mut archive = sample(&[2]);
        archive.file("/init/x", 0o644, Vec::new()).unwrap();
        assert_eq!(archive.to_bytes(), Err(NewcError::NoParent("init/x".to_owned())));
    }
}
