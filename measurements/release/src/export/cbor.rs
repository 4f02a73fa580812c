// SPDX-License-Identifier: Apache-2.0
//! The little CBOR that a CoRIM needs, always in the core deterministic encoding (RFC 8949, section 4.2.1): shortest
//! heads, definite lengths, map keys in the order of their encoded bytes.

/// A value to encode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// An integer from -2^32 to 2^64-1, as far as needed here.
    Unsigned(u64),
    /// -1 minus the number.
    Negative(u64),
    Bytes(Vec<u8>),
    Text(String),
    Array(Vec<Value>),
    Map(Vec<(Value, Value)>),
    Tag(u64, Box<Value>),
}

impl Value {
    pub(super) fn tagged(tag: u64, value: Self) -> Self {
        Self::Tag(tag, Box::new(value))
    }

    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A map with small numbers as keys.
    pub(super) fn map<const N: usize>(fields: [(u64, Self); N]) -> Self {
        Self::Map(fields.into_iter().map(|(key, value)| (Self::Unsigned(key), value)).collect())
    }

    /// The encoding.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Unsigned(number) => head(out, 0, *number),
            Self::Negative(number) => head(out, 1, *number),
            Self::Bytes(bytes) => {
                head(out, 2, length(bytes.len()));
                out.extend_from_slice(bytes);
            }
            Self::Text(text) => {
                head(out, 3, length(text.len()));
                out.extend_from_slice(text.as_bytes());
            }
            Self::Array(items) => {
                head(out, 4, length(items.len()));
                items.iter().for_each(|item| item.write(out));
            }
            Self::Map(fields) => {
                head(out, 5, length(fields.len()));
                let mut fields: Vec<_> = fields.iter().map(|(key, value)| (key.encode(), value)).collect();
                fields.sort_by(|(a, _), (b, _)| a.cmp(b));
                for (key, value) in fields {
                    out.extend_from_slice(&key);
                    value.write(out);
                }
            }
            Self::Tag(tag, value) => {
                head(out, 6, *tag);
                value.write(out);
            }
        }
    }
}

/// Major type and argument, in the shortest form.
fn head(out: &mut Vec<u8>, major: u8, argument: u64) {
    let major = major << 5;
    let [.., fourth, third, second, first] = argument.to_be_bytes();
    match argument {
        0..=23 => out.push(major | first),
        24..=0xff => out.extend([major | 24, first]),
        0x100..=0xffff => out.extend([major | 25, second, first]),
        0x1_0000..=0xffff_ffff => out.extend([major | 26, fourth, third, second, first]),
        _ => {
            out.push(major | 27);
            out.extend(argument.to_be_bytes());
        }
    }
}

/// Lengths fit: `usize` has at most 64 bits.
fn length(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Examples of RFC 8949, appendix A.
    #[test]
    fn encodings_are_those_of_the_standard() {
        let hex = |value: Value| value.encode().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        for (number, encoded) in [
            (0, "00"),
            (23, "17"),
            (24, "1818"),
            (100, "1864"),
            (1000, "1903e8"),
            (1_000_000, "1a000f4240"),
            (1_000_000_000_000, "1b000000e8d4a51000"),
            (u64::MAX, "1bffffffffffffffff"),
        ] {
            assert_eq!(hex(Value::Unsigned(number)), encoded);
        }
        assert_eq!(hex(Value::Negative(99)), "3863");
        assert_eq!(hex(Value::tagged(1, Value::Unsigned(1_363_896_240))), "c11a514b67b0");
        assert_eq!(hex(Value::Bytes(vec![1, 2, 3, 4])), "4401020304");
        assert_eq!(hex(Value::text("IETF")), "6449455446");
        assert_eq!(hex(Value::Array(vec![])), "80");
        assert_eq!(hex(Value::map([(3, Value::Unsigned(4)), (1, Value::Unsigned(2))])), "a201020304");
    }
}
