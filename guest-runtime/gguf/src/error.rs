// SPDX-License-Identifier: Apache-2.0
//! Why a file is refused.

use std::{fmt, io};
use thiserror::Error;

/// The rule that a file breaks. Numbers alone: nothing of the file's text is in it.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum GgufError {
    /// The file could not be read.
    #[error("cannot be read: {0}")]
    Io(io::ErrorKind),
    /// It does not begin with `GGUF`.
    #[error("magic: no GGUF file")]
    Magic,
    /// Another version of the format, or other endianness.
    #[error("version: {version}, but 2 and 3 are read, of little endian")]
    Version {
        /// What stands there.
        version: u32,
    },
    /// There are more of them than any model has.
    #[error("{field}: {count}, at most {most} are allowed")]
    TooMany {
        /// Of what.
        field: Field,
        /// What stands there.
        count: u64,
        /// The cap.
        most: u64,
    },
    /// It is longer than any model's.
    #[error("{field}: {length} bytes, at most {most} are allowed")]
    TooLong {
        /// What.
        field: Field,
        /// What stands there.
        length: u64,
        /// The cap.
        most: u64,
    },
    /// It reaches beyond the end of the file.
    #[error("{field}: {needed} bytes are announced where {left} are left")]
    Truncated {
        /// What.
        field: Field,
        /// Bytes that it takes at least.
        needed: u64,
        /// Bytes to the end of the file.
        left: u64,
    },
    /// Names, keys and values together are too long.
    #[error("header: longer than {} bytes", crate::MAX_HEADER_BYTES)]
    Header,
    /// No such type is known.
    #[error("{field}: type {value} is not known")]
    Type {
        /// Of what.
        field: Field,
        /// What stands there.
        value: u32,
    },
    /// It has another type than the specification gives it.
    #[error("{field}: another type is expected")]
    OtherType {
        /// What.
        field: Field,
    },
    /// An array of arrays.
    #[error("{field}: an array of arrays")]
    Nested {
        /// Which key's.
        field: Field,
    },
    /// A name or key is empty, no UTF-8, or holds U+0000.
    #[error("{field}: not a text")]
    NotText {
        /// Which.
        field: Field,
    },
    /// A name or key was there before.
    #[error("{field}: it is there twice")]
    Twice {
        /// Which.
        field: Field,
    },
    /// `general.alignment` is no power of two between 8 and [`crate::MAX_ALIGNMENT`].
    #[error("general.alignment: {alignment} is no power of two from 8 to {}", crate::MAX_ALIGNMENT)]
    Alignment {
        /// What stands there.
        alignment: u32,
    },
    /// `split.count`: the weights are in several files, of which the others would go unchecked.
    #[error("split.count: the model is split into several files")]
    Split,
    /// There is no tensor.
    #[error("tensors: there is none")]
    NoTensors,
    /// None, more than [`crate::MAX_DIMENSIONS`], or one of them is 0.
    #[error("{field}: 1 to {} dimensions are expected, none of them 0", crate::MAX_DIMENSIONS)]
    Dimensions {
        /// Which tensor's.
        field: Field,
    },
    /// A row is no whole number of its type's blocks.
    #[error("{field}: rows of {elements} elements cannot have type {value}")]
    Row {
        /// Which tensor's.
        field: Field,
        /// Elements of a row.
        elements: u64,
        /// Its type.
        value: u32,
    },
    /// Sizes multiply or add up beyond what a file can have.
    #[error("{field}: its size overflows")]
    Overflow {
        /// Of what.
        field: Field,
    },
    /// A tensor does not begin where the one before it ends.
    #[error("{field}: begins at {offset}, expected at {expected}")]
    Offset {
        /// Which tensor.
        field: Field,
        /// What stands there.
        offset: u64,
        /// Where it must begin.
        expected: u64,
    },
    /// The tensors reach beyond the end of the file.
    #[error("data: ends at {needed}, but the file at {length}")]
    Short {
        /// Where the last tensor ends.
        needed: u64,
        /// Bytes of the file.
        length: u64,
    },
    /// More follows the tensors than fills up to the alignment.
    #[error("data: ends at {end}, but the file at {length}")]
    Trailing {
        /// Where the last tensor ends.
        end: u64,
        /// Bytes of the file.
        length: u64,
    },
}

/// Where in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The first four bytes.
    Magic,
    /// The version of the format.
    Version,
    /// How many tensors.
    Tensors,
    /// How many keys.
    Keys,
    /// The key with this number, from 0.
    Key(u64),
    /// Its value.
    Value(u64),
    /// `general.alignment`.
    Alignment,
    /// `split.count`.
    Split,
    /// The tensor with this number, from 0.
    Tensor(u64),
    /// All weights.
    Data,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("magic"),
            Self::Version => f.write_str("version"),
            Self::Tensors => f.write_str("tensors"),
            Self::Keys => f.write_str("keys"),
            Self::Key(number) => write!(f, "key {number}"),
            Self::Value(number) => write!(f, "value {number}"),
            Self::Alignment => f.write_str("general.alignment"),
            Self::Split => f.write_str("split.count"),
            Self::Tensor(number) => write!(f, "tensor {number}"),
            Self::Data => f.write_str("data"),
        }
    }
}
