// SPDX-License-Identifier: Apache-2.0
//! The smallest files that can be measured.

/// A TDVF of 12 KiB: an empty variable store, a boot volume without code, the memory sections of Debian 13's `OVMF.fd`.
#[must_use]
pub fn firmware() -> Vec<u8> {
    let mut image = vec![0; FIRMWARE_LEN];
    write(&mut image, 0x28, b"_FVH");
    write(&mut image, 0x30, &[0x48]);
    write(&mut image, 0x48, &AUTHENTICATED_VARIABLES);
    write(&mut image, 0x58, &(28 + ERASED_LEN).to_le_bytes());
    write(&mut image, 0x64, &[0xff; ERASED_LEN as usize]);
    // Offset and length in the file, address, length in memory, kind, attributes.
    let sections: [(u32, u32, u64, u64, u32, u32); 6] = [
        (0x1000, 0x2000, 0xffff_e000, 0x2000, 0, 1),
        (0, 0x1000, 0xffff_d000, 0x1000, 1, 0),
        (0, 0, 0x81_1000, 0xf000, 3, 0),
        (0, 0, 0x80_b000, 0x2000, 3, 0),
        (0, 0, 0x80_9000, 0x2000, 2, 0),
        (0, 0, 0x80_0000, 0x6000, 3, 0),
    ];
    let mut metadata = b"TDVF".to_vec();
    for word in [16 + 32 * 6, 1, 6_u32] {
        metadata.extend(word.to_le_bytes());
    }
    for (offset, raw, address, len, kind, attributes) in sections {
        metadata.extend([offset.to_le_bytes(), raw.to_le_bytes()].concat());
        metadata.extend([address.to_le_bytes(), len.to_le_bytes()].concat());
        metadata.extend([kind.to_le_bytes(), attributes.to_le_bytes()].concat());
    }
    write(&mut image, FIRMWARE_LEN - METADATA_FROM_END as usize, &metadata);
    let mut table = METADATA_FROM_END.to_le_bytes().to_vec();
    table.extend(22_u16.to_le_bytes());
    table.extend(METADATA_OFFSET_GUID);
    table.extend(40_u16.to_le_bytes());
    table.extend(TABLE_FOOTER_GUID);
    write(&mut image, FIRMWARE_LEN - 0x20 - table.len(), &table);
    image
}

/// A PE32+ image with one section that is also a bzImage of protocol 2.15.
#[must_use]
pub fn kernel() -> Vec<u8> {
    let mut image = vec![0; 0x400];
    write(&mut image, 0x200, &[7; 0x200]);
    write(&mut image, 0, b"MZ");
    write(&mut image, 0x3c, &[PE as u8]);
    write(&mut image, PE, b"PE\0\0");
    write(&mut image, PE + 6, &[1]); // sections
    write(&mut image, PE + 20, &[OPTIONAL_LEN as u8]);
    let optional = PE + 24;
    write(&mut image, optional, &[0x0b, 0x02]);
    write(&mut image, optional + 60, &0x200_u32.to_le_bytes()); // headers
    write(&mut image, optional + 108, &[16]); // data directories
    let section = optional + OPTIONAL_LEN;
    write(&mut image, section + 16, &0x200_u32.to_le_bytes()); // length
    write(&mut image, section + 20, &0x200_u32.to_le_bytes()); // place
    write(&mut image, 0x202, b"HdrS");
    write(&mut image, 0x206, &0x20f_u16.to_le_bytes());
    write(&mut image, 0x211, &[1]); // loaded high
    write(&mut image, 0x236, &[2, 0]); // the initrd may lie above 4 GiB
    image
}

/// Any bytes: nothing looks into an initrd before it is measured.
#[must_use]
pub fn initrd() -> Vec<u8> {
    b"initrd".to_vec()
}

fn write(image: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in image.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

const FIRMWARE_LEN: usize = 0x3000;
const METADATA_FROM_END: u32 = 0x800;
const ERASED_LEN: u32 = 0x100;
const PE: usize = 0x40;
const OPTIONAL_LEN: usize = 0xf0;
/// `gEfiAuthenticatedVariableGuid`, as stored.
const AUTHENTICATED_VARIABLES: [u8; 16] =
    [0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92];
/// e47a6535-984a-4798-865e-4685a7bf8ec2, as stored.
const METADATA_OFFSET_GUID: [u8; 16] =
    [0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2];
/// 96b582de-1fb2-45f7-baea-a366c55a082d, as stored.
const TABLE_FOOTER_GUID: [u8; 16] =
    [0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d];
