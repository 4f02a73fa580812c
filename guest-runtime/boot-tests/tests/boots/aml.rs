// SPDX-License-Identifier: Apache-2.0
//! Hostile tables, written by hand (ACPI specification 6.5, chapters 5.2.6 and 20).

/// An SSDT whose code, run when it is loaded, says `mark`, a capital letter, on an I/O port, writes 32 bits to `address` in system memory
/// (or reads them, for `write: None`), and says the small letter on the port.
pub(crate) fn table(address: u64, write: Option<u32>, mark: u8) -> Vec<u8> {
    // All tables share one name space: names end with the mark.
    let named = |name: &[u8; 3]| [name[0], name[1], name[2], mark];
    let (port, said, memory, cell) = (named(b"POR"), named(b"SAY"), named(b"MEM"), named(b"CEL"));
    let mut code = region(&port, 1, PORT.into(), 1);
    code.extend(field(&port, &said, 8, 1));
    code.extend(region(&memory, 0, address, 4));
    code.extend(field(&memory, &cell, 32, 3));
    let mut body = store(&[0x0a, mark], &said);
    match write {
        Some(value) => body.extend(store(&[&[0x0c][..], &value.to_le_bytes()].concat(), &cell)),
        // Store (CELx, Local0)
        None => body.extend([&[0x70][..], &cell, &[0x60]].concat()),
    }
    body.extend(store(&[0x0a, mark.to_ascii_lowercase()], &said));
    // Method (RUNx) { … }, and its call. At module level the interpreter goes on after an error; in a method it does not.
    let run = named(b"RUN");
    code.extend([&[0x14, u8::try_from(6 + body.len()).unwrap()][..], &run, &[0x00], &body, &run].concat());
    let mut table = b"SSDT".to_vec();
    table.extend(u32::try_from(36 + code.len()).unwrap().to_le_bytes());
    table.extend([2, 0]);
    table.extend(b"CHRYSA");
    // Tables with the same identity would be taken for one.
    table.extend([b'E', b'V', b'I', b'L', mark, 0, 0, 0]);
    table.extend([1, 0, 0, 0]);
    table.extend(b"TEST\x01\0\0\0");
    table.extend(code);
    table[9] = table.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    table
}

/// `OperationRegion (NAME, space, address, length)`.
fn region(name: &[u8; 4], space: u8, address: u64, length: u8) -> Vec<u8> {
    [&[0x5b, 0x80], &name[..], &[space, 0x0e], &address.to_le_bytes(), &[0x0a, length]].concat()
}

/// `Field (REGION, access, NoLock, Preserve) { NAME, bits }`.
fn field(region: &[u8; 4], name: &[u8; 4], bits: u8, access: u8) -> Vec<u8> {
    // Package length (one byte, itself included), name, flags, one element.
    [&[0x5b, 0x81, 11][..], region, &[access], name, &[bits]].concat()
}

/// `Store (value, NAME)`.
fn store(value: &[u8], name: &[u8; 4]) -> Vec<u8> {
    [&[0x70], value, name].concat()
}

/// QEMU's debug console stands here, and writes into a file.
pub(crate) const PORT: u16 = 0x4f0;
