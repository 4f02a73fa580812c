// SPDX-License-Identifier: Apache-2.0
//! What programs and libraries ask of a dynamic linker (ELF-64, System V ABI chapter 4 and 5).

/// Refuses anything but a fixed-address x86-64 executable without interpreter and dynamic section.
///
/// # Errors
/// The rule that the file breaks.
pub(crate) fn check_static(file: &[u8]) -> Result<(), &'static str> {
    if file.get(..IDENT.len()) != Some(IDENT) {
        return Err("not a 64-bit little-endian ELF file");
    }
    if number(file, 16, 2) != Some(ET_EXEC) {
        return Err("not a fixed-address executable");
    }
    if number(file, 18, 2) != Some(EM_X86_64) {
        return Err("not for x86-64");
    }
    for segment in segments(file)? {
        match segment.kind {
            PT_DYNAMIC => return Err("it has a dynamic section"),
            PT_INTERP => return Err("it names a dynamic linker"),
            _ => {}
        }
    }
    Ok(())
}

/// What a program or library asks of the dynamic linker.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Needs {
    /// The dynamic linker that a program names, by path.
    pub(crate) linker: Option<String>,
    /// Libraries, by name.
    pub(crate) libraries: Vec<String>,
    /// Whether it has them looked for in its own directory first.
    pub(crate) beside: bool,
}

/// Reads the dynamic section of an x86-64 program or library.
///
/// # Errors
/// The rule that the file breaks; also when it brings search paths of its own, other than its own directory.
pub(crate) fn needs(file: &[u8]) -> Result<Needs, &'static str> {
    if file.get(..IDENT.len()) != Some(IDENT) || number(file, 18, 2) != Some(EM_X86_64) {
        return Err("not an x86-64 ELF file");
    }
    let segments = segments(file)?;
    let linker = match segments.iter().find(|segment| segment.kind == PT_INTERP) {
        Some(segment) => Some(text(segment.content(file)?, 0).ok_or("its dynamic linker's name is malformed")?),
        None => None,
    };
    let Some(dynamic) = segments.iter().find(|segment| segment.kind == PT_DYNAMIC) else {
        return Ok(Needs { linker, ..Needs::default() });
    };
    let dynamic = dynamic.content(file)?;
    let entries = (0..dynamic.len() / 16).map_while(|index| {
        let (tag, value) = (number(dynamic, index * 16, 8)?, number(dynamic, index * 16 + 8, 8)?);
        (tag != DT_NULL).then_some((tag, value))
    });
    let entries: Vec<(u64, u64)> = entries.collect();
    let value = |wanted: u64| entries.iter().find(|(tag, _)| *tag == wanted).map(|(_, value)| *value);
    let (begin, size) = value(DT_STRTAB).zip(value(DT_STRSZ)).ok_or("its dynamic section has no names")?;
    let names = segments.iter().find_map(|segment| segment.loaded(file, begin, size));
    let names = names.ok_or("the names of its dynamic section are not in the file")?;
    let name = |offset: u64| usize::try_from(offset).ok().and_then(|offset| text(names, offset));
    let paths: Vec<u64> = entries.iter().filter(|(tag, _)| is_search_path(*tag)).map(|(_, offset)| *offset).collect();
    if paths.iter().any(|offset| name(*offset).as_deref() != Some(OWN_DIRECTORY)) {
        return Err("it brings search paths of its own");
    }
    let wanted = entries.iter().filter(|(tag, _)| *tag == DT_NEEDED);
    let libraries = wanted.map(|(_, offset)| name(*offset));
    let libraries = libraries.collect::<Option<Vec<_>>>().ok_or("a library's name is malformed")?;
    Ok(Needs { linker, libraries, beside: !paths.is_empty() })
}

const fn is_search_path(tag: u64) -> bool {
    matches!(tag, DT_RPATH | DT_RUNPATH)
}

/// A program header.
struct Segment {
    kind: u64,
    offset: u64,
    address: u64,
    size: u64,
}

impl Segment {
    fn content<'a>(&self, file: &'a [u8]) -> Result<&'a [u8], &'static str> {
        slice(file, self.offset, self.size).ok_or("a segment is not in the file")
    }

    /// The bytes that stand at an address once this segment is loaded.
    fn loaded<'a>(&self, file: &'a [u8], address: u64, size: u64) -> Option<&'a [u8]> {
        let begin = address.checked_sub(self.address)?;
        let inside = self.kind == PT_LOAD && begin.checked_add(size)? <= self.size;
        inside.then(|| slice(file, self.offset.checked_add(begin)?, size))?
    }
}

fn segments(file: &[u8]) -> Result<Vec<Segment>, &'static str> {
    let table = number(file, 32, 8).ok_or("no program headers")?;
    let size = number(file, 54, 2).ok_or("no program headers")?;
    let count = number(file, 56, 2).filter(|n| *n > 0).ok_or("no program headers")?;
    let segment = |index: u64| {
        let offset = index.checked_mul(size).and_then(|o| table.checked_add(o)).ok_or("program headers overflow")?;
        let offset = usize::try_from(offset).map_err(|_| "program headers overflow")?;
        let field = |at: usize, length| number(file, offset.checked_add(at)?, length);
        let read =
            || Some(Segment { kind: field(0, 4)?, offset: field(8, 8)?, address: field(16, 8)?, size: field(32, 8)? });
        read().ok_or("program headers end early")
    };
    (0..count).map(segment).collect()
}

fn slice(file: &[u8], offset: u64, size: u64) -> Option<&[u8]> {
    file.get(usize::try_from(offset).ok()?..usize::try_from(offset.checked_add(size)?).ok()?)
}

/// The printable text that begins at `offset` and ends with a NUL.
fn text(bytes: &[u8], offset: usize) -> Option<String> {
    let rest = bytes.get(offset..)?;
    let text = rest.get(..rest.iter().position(|b| *b == 0)?)?;
    let plain = !text.is_empty() && text.iter().all(u8::is_ascii_graphic);
    plain.then(|| String::from_utf8_lossy(text).into_owned())
}

/// A little-endian number of `length` (at most 8) bytes.
fn number(file: &[u8], offset: usize, length: usize) -> Option<u64> {
    let bytes = file.get(offset..offset.checked_add(length)?)?;
    Some(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
}

/// Magic, ELFCLASS64, ELFDATA2LSB.
const IDENT: &[u8] = b"\x7fELF\x02\x01";
const ET_EXEC: u64 = 2;
const EM_X86_64: u64 = 62;
const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_STRSZ: u64 = 10;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;
const OWN_DIRECTORY: &str = "$ORIGIN";

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A program with a dynamic section: the linker it names, the libraries, another tag with an odd name.
    pub(crate) fn dynamic(linker: &str, libraries: &[&str], other: Option<u64>) -> Vec<u8> {
        with_path(linker, libraries, other.map(|tag| (tag, "/tmp")))
    }

    /// As [`dynamic`]; the tag's name is given.
    pub(crate) fn with_path(linker: &str, libraries: &[&str], other: Option<(u64, &str)>) -> Vec<u8> {
        let mut file = program(3, &[u8::try_from(PT_LOAD).unwrap(), 2, 3]);
        let headers = 64;
        let mut names = vec![0];
        let mut section = Vec::new();
        let mut entry = |tag: u64, value: u64| {
            section.extend_from_slice(&tag.to_le_bytes());
            section.extend_from_slice(&value.to_le_bytes());
        };
        for library in libraries {
            entry(DT_NEEDED, names.len() as u64);
            names.extend_from_slice(library.as_bytes());
            names.push(0);
        }
        if let Some((tag, path)) = other {
            entry(tag, names.len() as u64);
            names.extend_from_slice(path.as_bytes());
            names.push(0);
        }
        let begin = file.len() as u64;
        entry(DT_STRTAB, ADDRESS + begin);
        entry(DT_STRSZ, names.len() as u64);
        entry(DT_NULL, 0);
        file.extend_from_slice(&names);
        let at = file.len() as u64;
        file.extend_from_slice(&section);
        let linker_at = file.len() as u64;
        file.extend_from_slice(linker.as_bytes());
        file.push(0);
        let whole = file.len() as u64;
        let places = [(0, whole), (at, section.len() as u64), (linker_at, linker.len() as u64 + 1)];
        for (index, (offset, size)) in places.into_iter().enumerate() {
            let header = headers + index * 56;
            file[header + 8..header + 16].copy_from_slice(&offset.to_le_bytes());
            file[header + 16..header + 24].copy_from_slice(&(ADDRESS + offset).to_le_bytes());
            file[header + 32..header + 40].copy_from_slice(&size.to_le_bytes());
        }
        file
    }

    const ADDRESS: u64 = 0x40_0000;

    #[test]
    fn what_a_program_needs_is_read() {
        let file = dynamic("/lib64/ld.so", &["liba.so.1", "libb.so"], None);
        let found = needs(&file).unwrap();
        assert_eq!(found.linker.as_deref(), Some("/lib64/ld.so"));
        assert_eq!((found.libraries, found.beside), (vec!["liba.so.1".to_owned(), "libb.so".to_owned()], false));
        assert_eq!(needs(&program(2, &[1])).unwrap(), Needs::default());
        for tag in [DT_RPATH, DT_RUNPATH] {
            assert_eq!(needs(&dynamic("/l", &["a"], Some(tag))), Err("it brings search paths of its own"));
            assert!(needs(&with_path("/l", &["a"], Some((tag, "$ORIGIN/..")))).is_err());
            assert!(needs(&with_path("/l", &["a"], Some((tag, "$ORIGIN")))).unwrap().beside);
        }
        assert!(needs(b"#!/bin/sh").is_err());
    }

    #[test]
    fn lying_headers_are_refused() {
        let good = dynamic("/lib64/ld.so", &["liba.so.1"], None);
        for length in 64..good.len() {
            assert!(needs(&good[..length]).is_err(), "{length}");
        }
        for position in 64..232 {
            let mut file = good.clone();
            file[position..position + 8].fill(0xff);
            // Whatever it says, it is read or refused without a fault.
            let _ = needs(&file);
        }
    }

    fn program(kind: u8, headers: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(IDENT);
        file[16] = kind;
        file[18] = 62;
        file[32] = 64;
        file[54] = 56;
        file[56] = u8::try_from(headers.len()).unwrap();
        for header in headers {
            let mut bytes = [0; 56];
            bytes[0] = *header;
            file.extend_from_slice(&bytes);
        }
        file
    }

    #[test]
    fn only_static_programs_pass() {
        assert_eq!(check_static(&program(2, &[1, 1])), Ok(()));
        assert_eq!(check_static(&program(3, &[1])), Err("not a fixed-address executable"));
        assert_eq!(check_static(&program(2, &[1, 3])), Err("it names a dynamic linker"));
        assert_eq!(check_static(&program(2, &[1, 2])), Err("it has a dynamic section"));
        assert_eq!(check_static(&program(2, &[])), Err("no program headers"));
        assert_eq!(check_static(b"#!/bin/sh"), Err("not a 64-bit little-endian ELF file"));
        let short = program(2, &[1, 1]);
        assert_eq!(check_static(&short[..100]), Err("program headers end early"));
    }
}
