// SPDX-License-Identifier: Apache-2.0
//! What is known of a file without its content, and what a recording of a machine holds beside plain files.

use std::collections::BTreeMap;

use nix::sys::stat::{FileStat, SFlag};
use serde::{Deserialize, Serialize};

/// What a tree of plain files cannot hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recording {
    /// Device nodes and sockets by path.
    #[serde(default)]
    pub nodes: BTreeMap<String, Node>,
    /// Answers of programs, sockets and file systems, by question.
    #[serde(default)]
    pub answers: BTreeMap<String, String>,
}

/// A file, without what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits, the lower twelve of `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Node {
    /// Whether somebody other than root may read and write it.
    #[must_use]
    pub fn open_to_others(&self) -> bool {
        self.mode & 0o006 == 0o006
            || (self.gid != 0 && self.mode & 0o060 == 0o060)
            || (self.uid != 0 && self.mode & 0o600 == 0o600)
    }
}

/// The kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeKind {
    /// Directory.
    Directory,
    /// Regular file.
    File,
    /// Character device.
    CharacterDevice,
    /// Socket.
    Socket,
    /// Anything else.
    Other,
}

/// Everything that was read, so that a tree with the same answers can be written.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) links: BTreeMap<String, String>,
    pub(crate) directories: BTreeMap<String, ()>,
    pub(crate) nodes: BTreeMap<String, Node>,
}

/// What was read from a tree.
#[derive(Debug, Default)]
pub struct LoggedReads {
    /// Files by path.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Links by path, with the last component of their targets.
    pub links: BTreeMap<String, String>,
    /// Directories that were listed, and what they listed.
    pub directories: Vec<String>,
    /// Nodes that were looked at.
    pub nodes: BTreeMap<String, Node>,
}

pub(crate) fn node_of(facts: &FileStat) -> Node {
    let kind = match SFlag::from_bits_truncate(facts.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => NodeKind::Directory,
        SFlag::S_IFREG => NodeKind::File,
        SFlag::S_IFCHR => NodeKind::CharacterDevice,
        SFlag::S_IFSOCK => NodeKind::Socket,
        _ => NodeKind::Other,
    };
    Node { kind, mode: facts.st_mode & 0o7777, uid: facts.st_uid, gid: facts.st_gid }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_access_for_somebody_else_than_root_counts() {
        let node = |mode, uid, gid| Node { kind: NodeKind::CharacterDevice, mode, uid, gid };
        assert!(!node(0o600, 0, 0).open_to_others());
        assert!(!node(0o660, 0, 0).open_to_others(), "root's own group is nobody else");
        assert!(!node(0o640, 0, 107).open_to_others(), "reading alone is not enough");
        assert!(node(0o660, 0, 107).open_to_others());
        assert!(node(0o666, 0, 0).open_to_others());
    }
}
