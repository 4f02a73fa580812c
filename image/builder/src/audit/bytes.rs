// SPDX-License-Identifier: Apache-2.0
//! Where two files differ, in terms of what they hold: files of a root archive or disk, sections of a program, words of a
//! command line, offsets otherwise. Files that cannot be taken apart are compared by offset.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;

use crate::compression::decompress;
use crate::erofs;

/// A place where two files differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// What: a path of the root archive or disk and a section, a word, or `bytes`.
    pub part: String,
    /// How.
    pub detail: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.part, self.detail)
    }
}

/// Where `published` and `rebuilt`, files called `name`, differ. At most [`MAX_PLACES`] places; empty when they are equal.
pub(super) fn differences(name: &str, published: &[u8], rebuilt: &[u8]) -> Vec<Place> {
    if published == rebuilt {
        return Vec::new();
    }
    let mut places = match name {
        "cmdline" => words(published, rebuilt),
        "rootfs" => disk(published, rebuilt),
        "initrd" => root(published, rebuilt),
        _ => Vec::new(),
    };
    if places.is_empty() {
        places = vec![by_offset("bytes", published, rebuilt)];
    }
    let more = places.len().saturating_sub(MAX_PLACES);
    places.truncate(MAX_PLACES);
    if more > 0 {
        places.push(Place { part: "more".to_owned(), detail: format!("{more} further places") });
    }
    places
}

fn words(published: &[u8], rebuilt: &[u8]) -> Vec<Place> {
    let split = |bytes: &[u8]| -> Vec<String> {
        String::from_utf8_lossy(bytes).split(' ').map(|word| word.escape_debug().to_string()).collect()
    };
    let (published, rebuilt) = (split(published), split(rebuilt));
    let missing = published.iter().filter(|word| !rebuilt.contains(word));
    let added = rebuilt.iter().filter(|word| !published.contains(word));
    let place = |part: &str, word: &String| Place { part: part.to_owned(), detail: word.clone() };
    missing
        .map(|word| place("word only published", word))
        .chain(added.map(|word| place("word only rebuilt", word)))
        .collect()
}

/// Differences between two compressed `newc` archives; none when one of them is not such an archive.
fn root(published: &[u8], rebuilt: &[u8]) -> Vec<Place> {
    let unpacked = [published, rebuilt].map(|frame| decompress(frame, MAX_ROOT));
    let [Some(published), Some(rebuilt)] = &unpacked else { return Vec::new() };
    let (Some(published), Some(rebuilt)) = (entries(published), entries(rebuilt)) else { return Vec::new() };
    by_entry(&published, &rebuilt)
}

/// Differences between two verified disks: the files of their file systems, or else the hash trees behind them; none when
/// one of them cannot be taken apart.
fn disk(published: &[u8], rebuilt: &[u8]) -> Vec<Place> {
    let trees = [published, rebuilt].map(erofs::read);
    let [Some(a), Some(b)] = &trees else { return Vec::new() };
    let entries = |tree: &erofs::Tree<'_>| -> BTreeMap<String, Entry<'static>> {
        let entry = |node: &erofs::Node<'_>| {
            // A directory's own bytes say where the file system put things; what it names is compared by path.
            let data = if node.is_directory() { Vec::new() } else { node.data.concat() };
            let fields = [node.mode.into(), node.owner.0, node.owner.1, 0, 0, 0];
            Entry { fields, data: Cow::Owned(data) }
        };
        tree.nodes.iter().map(|(path, node)| (path.clone(), entry(node))).collect()
    };
    let places = by_entry(&entries(a), &entries(b));
    let (file_systems, hashes) =
        ([published.get(..a.size), rebuilt.get(..b.size)], [published.get(a.size..), rebuilt.get(b.size..)]);
    match (file_systems, hashes) {
        ([x, y], [Some(published), Some(rebuilt)]) if places.is_empty() && x == y => {
            vec![by_offset("hash tree", published, rebuilt)]
        }
        _ => places,
    }
}

fn by_entry(published: &BTreeMap<String, Entry<'_>>, rebuilt: &BTreeMap<String, Entry<'_>>) -> Vec<Place> {
    let mut places = Vec::new();
    let names = published.keys().chain(rebuilt.keys().filter(|name| !published.contains_key(*name)));
    for name in names {
        let place = |detail: &str| Place { part: name.clone(), detail: detail.to_owned() };
        match (published.get(name), rebuilt.get(name)) {
            (Some(_), None) => places.push(place("only published")),
            (None, Some(_)) => places.push(place("only rebuilt")),
            (Some(a), Some(b)) => {
                if a.fields != b.fields {
                    places.push(place(&format!(
                        "mode, device or owner: published {:?}, rebuilt {:?}",
                        a.fields, b.fields
                    )));
                }
                if a.data != b.data {
                    places.extend(program(name, &a.data, &b.data));
                }
            }
            (None, None) => {}
        }
    }
    places
}

/// Differences between two programs by section; by offset when one is no ELF file or all sections are equal.
fn program(name: &str, published: &[u8], rebuilt: &[u8]) -> Vec<Place> {
    let mut places = Vec::new();
    if let (Some(a), Some(b)) = (sections(published), sections(rebuilt)) {
        for section in a.keys().chain(b.keys().filter(|s| !a.contains_key(*s))) {
            let part = format!("{name}, section {section}");
            match (a.get(section), b.get(section)) {
                (Some(x), Some(y)) if x == y => {}
                (Some(x), Some(y)) => places.push(by_offset(&part, x, y)),
                (Some(_), None) => places.push(Place { part, detail: "only published".to_owned() }),
                _ => places.push(Place { part, detail: "only rebuilt".to_owned() }),
            }
        }
    }
    if places.is_empty() { vec![by_offset(name, published, rebuilt)] } else { places }
}

fn by_offset(part: &str, published: &[u8], rebuilt: &[u8]) -> Place {
    let differ = |(a, b): (&u8, &u8)| a != b;
    let first = published.iter().zip(rebuilt).position(differ);
    let count = published.iter().zip(rebuilt).filter(|pair| differ(*pair)).count();
    let detail = match (first, published.len() == rebuilt.len()) {
        (Some(first), true) => format!("{count} of {} bytes, the first at offset {first:#x}", published.len()),
        (first, _) => {
            let first = first.unwrap_or_else(|| published.len().min(rebuilt.len()));
            format!(
                "{} bytes published, {} rebuilt, the first difference at offset {first:#x}",
                published.len(),
                rebuilt.len()
            )
        }
    };
    Place { part: part.to_owned(), detail }
}

/// An entry of a `newc` archive or a disk: mode, user, group, time, device numbers; and data.
struct Entry<'a> {
    fields: [u32; 6],
    data: Cow<'a, [u8]>,
}

/// The entries of a `newc` archive by name (Linux, `buffer-format.rst`); `None` when it is none.
fn entries(archive: &[u8]) -> Option<BTreeMap<String, Entry<'_>>> {
    let mut found = BTreeMap::new();
    let mut offset = 0_usize;
    loop {
        let header = archive.get(offset..offset.checked_add(HEADER)?)?;
        if header.get(..6)? != b"070701" {
            return None;
        }
        let field = |index: usize| {
            let begin = 6 + index * 8;
            u32::from_str_radix(std::str::from_utf8(header.get(begin..begin + 8)?).ok()?, 16).ok()
        };
        let (size, name_size) = (usize::try_from(field(6)?).ok()?, usize::try_from(field(11)?).ok()?);
        let name_begin = offset.checked_add(HEADER)?;
        let name_end = name_begin.checked_add(name_size)?;
        let name = archive.get(name_begin..name_end)?.strip_suffix(b"\0")?;
        let begin = name_end.checked_next_multiple_of(4)?;
        let end = begin.checked_add(size)?;
        if name == b"TRAILER!!!" {
            return Some(found);
        }
        let fields = [field(1)?, field(2)?, field(3)?, field(5)?, field(9)?, field(10)?];
        let name = format!("/{}", String::from_utf8_lossy(name).escape_debug());
        found.insert(name, Entry { fields, data: Cow::Borrowed(archive.get(begin..end)?) });
        offset = end.checked_next_multiple_of(4)?;
    }
}

/// The sections of an ELF-64 file by name (System V ABI, chapter 4); `None` when it is none.
fn sections(file: &[u8]) -> Option<BTreeMap<String, &[u8]>> {
    let number = |offset: usize, length: usize| -> Option<usize> {
        let bytes = file.get(offset..offset.checked_add(length)?)?;
        usize::try_from(bytes.iter().rev().fold(0_u64, |n, b| n << 8 | u64::from(*b))).ok()
    };
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count, names) = (number(40, 8)?, number(58, 2)?, number(60, 2)?, number(62, 2)?);
    // Headers that overlap, or names without end, would make much of a small file.
    if size != SECTION_HEADER {
        return None;
    }
    let header = |index: usize| table.checked_add(index.checked_mul(size)?);
    let names = header(names)?;
    let (names, names_size) = (number(names.checked_add(24)?, 8)?, number(names.checked_add(32)?, 8)?);
    let names = file.get(names..names.checked_add(names_size)?)?;
    let mut found = BTreeMap::new();
    for index in 0..count {
        let at = header(index)?;
        let name = names.get(number(at, 4)?..)?.split(|b| *b == 0).next()?;
        if name.len() > MAX_SECTION_NAME {
            return None;
        }
        let (offset, length) = (number(at.checked_add(24)?, 8)?, number(at.checked_add(32)?, 8)?);
        let data = if number(at.checked_add(4)?, 4)? == SHT_NOBITS {
            &[]
        } else {
            file.get(offset..offset.checked_add(length)?)?
        };
        found.insert(format!("{} {index}", String::from_utf8_lossy(name).escape_debug()), data);
    }
    (!found.is_empty()).then_some(found)
}

/// Most places named for one file.
const MAX_PLACES: usize = 40;
/// Most bytes of an unpacked root; a larger one is compared by offset.
const MAX_ROOT: usize = 1 << 30;
const HEADER: usize = 110;
const SHT_NOBITS: usize = 8;
/// Bytes of `Elf64_Shdr`.
const SECTION_HEADER: usize = 64;
/// Longer than any that a linker writes into a program.
const MAX_SECTION_NAME: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{compression::compress, newc::Archive};

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = Archive::new();
        archive.directory("/bin").unwrap();
        for (path, data) in files {
            archive.file(path, 0o755, data.to_vec()).unwrap();
        }
        compress(&archive.to_bytes().unwrap()).unwrap()
    }

    /// An ELF file with sections `.text`, `.data` and the names.
    fn elf(text: &[u8], data: &[u8]) -> Vec<u8> {
        let names = b"\0.text\0.data\0.shstrtab\0";
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let mut headers = vec![[0_u8; 64]];
        for (name, content) in [(1_u32, text), (7, data), (13, names.as_slice())] {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[4] = 1;
            header[24..32].copy_from_slice(&(file.len() as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(content.len() as u64).to_le_bytes());
            headers.push(header);
            file.extend_from_slice(content);
        }
        let table = file.len() as u64;
        file[40..48].copy_from_slice(&table.to_le_bytes());
        file[58] = 64;
        file[60] = 4;
        file[62] = 3;
        headers.iter().for_each(|h| file.extend_from_slice(h));
        file
    }

    #[test]
    fn the_differing_section_of_the_differing_program_is_named() {
        let a = archive(&[("/init", b"same"), ("/bin/x", &elf(b"code", b"data"))]);
        let b = archive(&[("/init", b"same"), ("/bin/x", &elf(b"code", b"dada"))]);
        let places = differences("initrd", &a, &b);
        assert_eq!(places.len(), 1, "{places:?}");
        assert!(places[0].part.starts_with("/bin/x, section .data"), "{places:?}");
        assert_eq!(places[0].detail, "1 of 4 bytes, the first at offset 0x2");
        assert_eq!(differences("initrd", &a, &a), []);
    }

    #[test]
    fn missing_files_are_named() {
        let places =
            differences("initrd", &archive(&[("/init", b"x"), ("/bin/a", b"a")]), &archive(&[("/init", b"x")]));
        assert_eq!(places, [Place { part: "/bin/a".into(), detail: "only published".into() }]);
    }

    #[test]
    fn what_cannot_be_taken_apart_is_compared_by_offset() {
        let places = differences("initrd", b"070701 broken", b"070701 brokem");
        assert_eq!(places[0].to_string(), "bytes: 1 of 13 bytes, the first at offset 0xc");
        let places = differences("vmlinuz", b"kernel", b"kernel+");
        assert!(places[0].detail.contains("6 bytes published, 7 rebuilt"), "{places:?}");
        let mut lying = elf(b"code", b"data");
        let table = usize::try_from(u64::from_le_bytes(lying[40..48].try_into().unwrap())).unwrap();
        lying[table + 64 + 24..table + 64 + 32].fill(0xff);
        assert!(sections(&lying).is_none());
        let mut overlapping = elf(b"code", b"data");
        assert_eq!(sections(&overlapping).unwrap().len(), 4);
        overlapping[58] = 0;
        assert!(sections(&overlapping).is_none());
        let mut long_named = elf(b"code", &[b'x'; MAX_SECTION_NAME + 1]);
        // The data as the table of names.
        long_named[62] = 2;
        assert!(sections(&long_named).is_none());
    }

    #[test]
    fn the_differing_file_of_a_disk_is_named() {
        let with = |content: &[u8], hashes: &[u8]| [erofs::tests::example(content), hashes.to_vec()].concat();
        let places = differences("rootfs", &with(b"content", b"hash"), &with(b"kontent", b"hosh"));
        assert_eq!(places, [Place { part: "/a/f".into(), detail: "1 of 7 bytes, the first at offset 0x0".into() }]);
        let (a, b) = (elf(b"code", b"data"), elf(b"code", b"dada"));
        let places = differences("rootfs", &with(&a, b""), &with(&b, b""));
        assert!(places.len() == 1 && places[0].part.starts_with("/a/f, section .data"), "{places:?}");
    }

    #[test]
    fn what_is_no_file_of_a_disk_is_named_by_place() {
        let disk = [erofs::tests::example(b"content"), b"hash".to_vec()].concat();
        let changed = |position: usize| {
            let mut other = disk.clone();
            other[position] ^= 1;
            differences("rootfs", &disk, &other)
        };
        assert_eq!(changed(2 * 4096 + 1)[0].to_string(), "hash tree: 1 of 4 bytes, the first at offset 0x1");
        assert!(changed(4096 + 100)[0].to_string().starts_with("bytes: 1 of 8196 bytes"));
        assert!(changed(1024)[0].to_string().starts_with("bytes: 1 of 8196 bytes"));
    }

    #[test]
    fn swapped_words_are_a_difference_too() {
        assert_eq!(differences("cmdline", b"a b", b"b a").len(), 1);
    }
}
