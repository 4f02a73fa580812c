// SPDX-License-Identifier: Apache-2.0
//! Reads the file system of an image's verified disk, to compare two of them: erofs as `mkfs.erofs` writes it without
//! compression (Linux, `fs/erofs/erofs_fs.h`). Whoever made the bytes: they are read or refused, never trusted.

use std::collections::BTreeMap;

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node<'a> {
    /// Kind and permissions, as in `st_mode`.
    pub(crate) mode: u16,
    /// Owner and group.
    pub(crate) owner: (u32, u32),
    /// A file's bytes or a link's target, in the pieces in which the file system holds them.
    pub(crate) data: Vec<&'a [u8]>,
}

impl Node<'_> {
    /// Whether it is a directory.
    pub(crate) fn is_directory(&self) -> bool {
        self.mode & S_IFMT == S_IFDIR
    }
}

/// A file system: what is in it, and where its blocks end in the bytes given.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    /// By absolute path.
    pub(crate) nodes: BTreeMap<String, Node<'a>>,
    /// Bytes of the file system.
    pub(crate) size: usize,
}

/// Reads the file system at the beginning of `disk`; `None` when it is none, uses what is not known here, or contradicts
/// itself. All data of the tree together is no longer than the file system: inodes that share blocks, which a copy would
/// multiply, are refused.
pub(crate) fn read(disk: &[u8]) -> Option<Tree<'_>> {
    let reader = Reader::new(disk)?;
    let mut nodes = BTreeMap::new();
    let mut pending = vec![(String::new(), reader.root)];
    let mut unread = reader.size;
    while let Some((path, inode)) = pending.pop() {
        let node = reader.inode(inode)?;
        unread = node.data.iter().try_fold(unread, |left, piece| left.checked_sub(piece.len()))?;
        if node.is_directory() {
            let most = MAX_NODES.checked_sub(nodes.len() + 1 + pending.len())?;
            for (name, inode) in reader.directory(&node, most)? {
                let path = format!("{path}/{name}");
                if path.len() > MAX_PATH {
                    return None;
                }
                pending.push((path, inode));
            }
        }
        let place = if path.is_empty() { "/".to_owned() } else { path };
        if place.matches('/').count() > MAX_DEPTH || nodes.insert(place, node).is_some() {
            return None;
        }
    }
    Some(Tree { nodes, size: reader.size })
}

struct Reader<'a> {
    disk: &'a [u8],
    size: usize,
    inodes: usize,
    root: u64,
}

impl<'a> Reader<'a> {
    fn new(disk: &'a [u8]) -> Option<Self> {
        let superblock = disk.get(SUPERBLOCK..SUPERBLOCK + 128)?;
        let known = number(superblock, 0, 4)? == MAGIC
            && number(superblock, 12, 1)? == BLOCK_BITS
            && number(superblock, 80, 4)? == 0;
        let size = usize::try_from(number(superblock, 36, 4)?).ok()?.checked_mul(BLOCK)?;
        let inodes = usize::try_from(number(superblock, 40, 4)?).ok()?.checked_mul(BLOCK)?;
        let root = number(superblock, 14, 2)?;
        (known && size <= disk.len()).then_some(Self { disk, size, inodes, root })
    }

    fn inode(&self, number_of: u64) -> Option<Node<'a>> {
        let begin = usize::try_from(number_of).ok()?.checked_mul(SLOT)?.checked_add(self.inodes)?;
        let field = |offset: usize, length| number(self.disk, begin.checked_add(offset)?, length);
        let format = field(0, 2)?;
        let extended = format & 1 == 1;
        let (size, owner, length) = if extended {
            (field(8, 8)?, (field(24, 4)?, field(28, 4)?), 64)
        } else {
            (field(8, 4)?, (field(24, 2)?, field(26, 2)?), 32)
        };
        let owner = (u32::try_from(owner.0).ok()?, u32::try_from(owner.1).ok()?);
        let (size, first) = (usize::try_from(size).ok()?, usize::try_from(field(16, 4)?).ok()?);
        let no_attributes = field(2, 2)? == 0;
        let layout = (format >> 1) & 7;
        if !no_attributes || format >> 4 != 0 || !matches!(layout, FLAT_PLAIN | FLAT_INLINE) {
            return None;
        }
        let inline = if layout == FLAT_INLINE { size % BLOCK } else { 0 };
        let mut data = Vec::new();
        if size > inline {
            data.push(self.bytes(first.checked_mul(BLOCK)?, size - inline)?);
        }
        if inline > 0 {
            data.push(self.bytes(begin.checked_add(length)?, inline)?);
        }
        Some(Node { mode: u16::try_from(field(4, 2)?).ok()?, owner, data })
    }

    /// Names and inodes of a directory, without itself and its parent; `None` also when there are more than `most`.
    fn directory(&self, node: &Node<'a>, most: usize) -> Option<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for block in node.data.iter().flat_map(|piece| piece.chunks(BLOCK)) {
            let begin =
                |index: usize| usize::try_from(number(block, index.checked_mul(ENTRY)?.checked_add(8)?, 2)?).ok();
            let count = begin(0)? / ENTRY;
            for index in 0..count {
                let end = if index + 1 < count { begin(index + 1)? } else { block.len() };
                let name = block.get(begin(index)?..end)?.split(|b| *b == 0).next()?;
                if matches!(name, b"." | b"..") {
                    continue;
                }
                if name.is_empty() || name.len() > MAX_NAME || name.contains(&b'/') || found.len() >= most {
                    return None;
                }
                let name = String::from_utf8_lossy(name).escape_debug().to_string();
                found.push((name, number(block, index * ENTRY, 8)?));
            }
        }
        Some(found)
    }

    fn bytes(&self, offset: usize, length: usize) -> Option<&'a [u8]> {
        self.disk.get(..self.size)?.get(offset..offset.checked_add(length)?)
    }
}

/// A little-endian number of `length` (at most 8) bytes.
fn number(bytes: &[u8], offset: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(offset..offset.checked_add(length)?)?;
    Some(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
}

/// `EROFS_SUPER_OFFSET` and `EROFS_SUPER_MAGIC_V1`.
const SUPERBLOCK: usize = 1024;
const MAGIC: u64 = 0xe0f5_e1e2;
const BLOCK_BITS: u64 = 12;
const BLOCK: usize = 4096;
/// Inodes are numbered by slots of this size.
const SLOT: usize = 32;
/// `struct erofs_dirent`.
const ENTRY: usize = 12;
const FLAT_PLAIN: u64 = 0;
const FLAT_INLINE: u64 = 2;
const S_IFMT: u16 = 0o170_000;
const S_IFDIR: u16 = 0o040_000;
/// Files and directories, read and still to read.
const MAX_NODES: usize = 10_000;
const MAX_DEPTH: usize = 32;
/// `EROFS_NAME_LEN`.
const MAX_NAME: usize = 255;
/// Bytes of a path, as it is printed.
const MAX_PATH: usize = 1024;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A file system with `/a` (a directory) and `/a/f`, laid out by hand: superblock and inodes in block 0, data in block 1.
    pub(crate) fn example(content: &[u8]) -> Vec<u8> {
        assert!(content.len() <= BLOCK);
        let mut disk = vec![0; 2 * BLOCK];
        let mut put = |offset: usize, value: u64, length: usize| {
            disk[offset..offset + length].copy_from_slice(&value.to_le_bytes()[..length]);
        };
        put(SUPERBLOCK, MAGIC, 4);
        put(SUPERBLOCK + 12, BLOCK_BITS, 1);
        put(SUPERBLOCK + 14, 40, 2);
        put(SUPERBLOCK + 36, 2, 4);
        let mut inode = |slot: usize, layout: u64, mode: u64, size: u64, block: u64| {
            put(slot * SLOT, layout << 1, 2);
            put(slot * SLOT + 4, mode, 2);
            put(slot * SLOT + 8, size, 4);
            put(slot * SLOT + 16, block, 4);
        };
        inode(40, FLAT_INLINE, 0o040_755, 13, 0);
        inode(50, FLAT_INLINE, 0o040_755, 13, 0);
        inode(60, FLAT_PLAIN, 0o100_644, content.len() as u64, 1);
        for (slot, target, name) in [(41, 50, b'a'), (51, 60, b'f')] {
            put(slot * SLOT, target, 8);
            put(slot * SLOT + 8, 12, 2);
            put(slot * SLOT + 12, name.into(), 1);
        }
        disk[BLOCK..BLOCK + content.len()].copy_from_slice(content);
        disk
    }

    #[test]
    fn files_and_directories_are_found() {
        let disk = example(b"content");
        let tree = read(&disk).unwrap();
        assert_eq!(tree.size, disk.len());
        assert_eq!(tree.nodes.keys().collect::<Vec<_>>(), ["/", "/a", "/a/f"]);
        let file = &tree.nodes["/a/f"];
        assert_eq!((file.mode, file.owner, file.data.concat().as_slice()), (0o100_644, (0, 0), &b"content"[..]));
    }

    #[test]
    fn whatever_the_bytes_say_reading_ends() {
        let good = example(b"content");
        for position in (SUPERBLOCK..SUPERBLOCK + 128).chain(40 * SLOT..62 * SLOT) {
            for value in [0, 1, 0xff] {
                let mut disk = good.clone();
                disk[position] = value;
                let _ = read(&disk);
            }
        }
        assert!(read(&good[..BLOCK]).is_none());
        assert!(read(&[]).is_none());
        // A directory that holds itself.
        let mut disk = good;
        disk[51 * SLOT] = 50;
        assert!(read(&disk).is_none());
    }

    /// A file system whose root is one directory of `names`; each stands for the same inode, an empty file unless `shared`,
    /// a file of one block otherwise.
    fn flat(names: &[String], shared: bool) -> Vec<u8> {
        let mut blocks = vec![Vec::new()];
        for name in names {
            let used = |block: &Vec<String>| block.iter().map(|name| ENTRY + name.len()).sum::<usize>();
            if blocks.last().is_none_or(|block| used(block) + ENTRY + name.len() > BLOCK) {
                blocks.push(Vec::new());
            }
            blocks.last_mut().unwrap().push(name.clone());
        }
        let mut disk = example(&[7; BLOCK]);
        let size = disk.len() / BLOCK + blocks.len();
        disk[SUPERBLOCK + 36..][..4].copy_from_slice(&u32::try_from(size).unwrap().to_le_bytes());
        let length = u32::try_from(blocks.len() * BLOCK).unwrap();
        // FLAT_PLAIN.
        disk[40 * SLOT] = 0;
        disk[40 * SLOT + 8..][..4].copy_from_slice(&length.to_le_bytes());
        disk[40 * SLOT + 16] = 2;
        if !shared {
            disk[60 * SLOT + 8..][..4].fill(0);
        }
        for block in &blocks {
            let (mut entries, mut text) = (Vec::new(), Vec::new());
            for name in block {
                let begin = u16::try_from(block.len() * ENTRY + text.len()).unwrap();
                entries.extend_from_slice(&60_u64.to_le_bytes());
                entries.extend_from_slice(&begin.to_le_bytes());
                entries.extend_from_slice(&[1, 0]);
                text.extend_from_slice(name.as_bytes());
            }
            entries.append(&mut text);
            entries.resize(BLOCK, 0);
            disk.append(&mut entries);
        }
        disk
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("{index:05}")).collect()
    }

    #[test]
    fn files_that_share_blocks_are_refused() {
        // Three blocks hold superblock, data and directory: the data may be read twice before it is more than is there.
        assert_eq!(read(&flat(&names(2), true)).unwrap().nodes.len(), 3);
        assert!(read(&flat(&names(3), true)).is_none());
        assert_eq!(read(&flat(&names(3), false)).unwrap().nodes.len(), 4);
    }

    #[test]
    fn too_many_names_are_refused_before_they_are_kept() {
        // The root is a node, too.
        assert_eq!(read(&flat(&names(MAX_NODES - 1), false)).unwrap().nodes.len(), MAX_NODES);
        let disk = flat(&names(MAX_NODES), false);
        assert!(read(&disk).is_none());
        let reader = Reader::new(&disk).unwrap();
        let root = reader.inode(reader.root).unwrap();
        assert!(reader.directory(&root, MAX_NODES - 1).is_none());
        assert_eq!(reader.directory(&root, MAX_NODES).unwrap().len(), MAX_NODES);
    }

    #[test]
    fn long_names_and_paths_are_refused() {
        assert!(read(&flat(&["n".repeat(MAX_NAME)], false)).is_some());
        assert!(read(&flat(&["n".repeat(MAX_NAME + 1)], false)).is_none());
        // As long, but each byte is printed as five.
        assert!(read(&flat(&["\u{1}".repeat(MAX_NAME)], false)).is_none());
    }
}
