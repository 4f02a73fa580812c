// SPDX-License-Identifier: Apache-2.0
//! Checks that a program needs no dynamic linker (ELF-64, System V ABI chapter 4 and 5).

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
    let table = number(file, 32, 8).ok_or("no program headers")?;
    let size = number(file, 54, 2).ok_or("no program headers")?;
    let count = number(file, 56, 2).filter(|n| *n > 0).ok_or("no program headers")?;
    for index in 0..count {
        let offset = index.checked_mul(size).and_then(|o| table.checked_add(o)).ok_or("program headers overflow")?;
        let offset = usize::try_from(offset).map_err(|_| "program headers overflow")?;
        match number(file, offset, 4).ok_or("program headers end early")? {
            PT_DYNAMIC => return Err("it has a dynamic section"),
            PT_INTERP => return Err("it names a dynamic linker"),
            _ => {}
        }
    }
    Ok(())
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
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;

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
