// SPDX-License-Identifier: Apache-2.0
//! The few DER values of the Intel SGX extensions of a PCK certificate.

/// SEQUENCE of already encoded values.
pub(crate) fn sequence(items: &[Vec<u8>]) -> Vec<u8> {
    tlv(0x30, &items.concat())
}

/// SEQUENCE { OBJECT IDENTIFIER, value }.
pub(crate) fn entry(arcs: &[u64], value: Vec<u8>) -> Vec<u8> {
    sequence(&[object_identifier(arcs), value])
}

/// OCTET STRING.
pub(crate) fn octets(bytes: &[u8]) -> Vec<u8> {
    tlv(0x04, bytes)
}

/// INTEGER, not negative.
pub(crate) fn integer(value: u16) -> Vec<u8> {
    let [high, low] = value.to_be_bytes();
    match (high, low) {
        (0, low) if low < 0x80 => tlv(0x02, &[low]),
        (high, low) if high < 0x80 => tlv(0x02, &[high, low]),
        (high, low) => tlv(0x02, &[0, high, low]),
    }
}

/// ENUMERATED below 128.
pub(crate) fn enumerated(value: u8) -> Vec<u8> {
    tlv(0x0a, &[value])
}

/// BOOLEAN.
pub(crate) fn boolean(value: bool) -> Vec<u8> {
    tlv(0x01, &[if value { 0xff } else { 0 }])
}

fn object_identifier(arcs: &[u64]) -> Vec<u8> {
    let mut out = Vec::new();
    if let [first, second, rest @ ..] = arcs {
        base128(&mut out, first * 40 + second);
        for arc in rest {
            base128(&mut out, *arc);
        }
    }
    tlv(0x06, &out)
}

fn base128(out: &mut Vec<u8>, value: u64) {
    let mut groups = vec![(value & 0x7f) as u8];
    let mut rest = value >> 7;
    while rest > 0 {
        groups.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.extend(groups.iter().rev());
}

fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = value.len().to_be_bytes();
    let significant: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
    match significant.as_slice() {
        [] => out.push(0),
        [short] if *short < 0x80 => out.push(*short),
        long => {
            out.push(0x80 | long.len() as u8);
            out.extend_from_slice(long);
        }
    }
    out.extend_from_slice(value);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_encoded_as_x690_says() {
        assert_eq!(object_identifier(&[1, 2, 840, 113_741, 1]), [6, 7, 0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 1]);
        assert_eq!(integer(0x80), [2, 2, 0, 0x80]);
        assert_eq!(integer(0x8000), [2, 3, 0, 0x80, 0]);
        assert_eq!(integer(5), [2, 1, 5]);
        assert_eq!(octets(&[0; 200])[..3], [4, 0x81, 200]);
        assert_eq!(octets(&[0; 300])[..4], [4, 0x82, 1, 44]);
    }
}
