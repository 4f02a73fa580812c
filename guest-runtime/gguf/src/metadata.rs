// SPDX-License-Identifier: Apache-2.0
//! Keys and values.

use crate::{Field, GgufError, MAX_ALIGNMENT, cursor::Cursor};
use std::{collections::HashSet, io::Read};

/// Reads all keys and values and gives the alignment, which one of them may set.
pub(crate) fn read(cursor: &mut Cursor<'_, impl Read>, keys: u64) -> Result<u64, GgufError> {
    let (mut seen, mut alignment) = (HashSet::new(), DEFAULT_ALIGNMENT);
    for number in 0..keys {
        let key = cursor.name(Field::Key(number), MAX_KEY_BYTES)?;
        let kind = cursor.u32(Field::Value(number))?;
        match key.as_str() {
            ALIGNMENT => alignment = read_alignment(cursor, kind)?,
            SPLIT => read_split(cursor, kind)?,
            _ => value(cursor, Field::Value(number), kind)?,
        }
        if !seen.insert(key) {
            return Err(GgufError::Twice { field: Field::Key(number) });
        }
    }
    Ok(alignment)
}

fn read_alignment(cursor: &mut Cursor<'_, impl Read>, kind: u32) -> Result<u64, GgufError> {
    if kind != U32 {
        return Err(GgufError::OtherType { field: Field::Alignment });
    }
    let alignment = cursor.u32(Field::Alignment)?;
    if alignment.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&alignment) {
        Ok(alignment.into())
    } else {
        Err(GgufError::Alignment { alignment })
    }
}

fn read_split(cursor: &mut Cursor<'_, impl Read>, kind: u32) -> Result<(), GgufError> {
    if kind != U16 {
        return Err(GgufError::OtherType { field: Field::Split });
    }
    // A file that was joined again may say 0 or 1.
    if u16::from_le_bytes(cursor.bytes(Field::Split)?) > 1 { Err(GgufError::Split) } else { Ok(()) }
}

fn value(cursor: &mut Cursor<'_, impl Read>, field: Field, kind: u32) -> Result<(), GgufError> {
    match kind {
        STRING => string(cursor, field),
        ARRAY => array(cursor, field),
        kind => cursor.skip(field, 1, size(kind).ok_or(GgufError::Type { field, value: kind })?),
    }
}

fn array(cursor: &mut Cursor<'_, impl Read>, field: Field) -> Result<(), GgufError> {
    let kind = cursor.u32(field)?;
    let count = cursor.count(field, MAX_ARRAY)?;
    match kind {
        ARRAY => Err(GgufError::Nested { field }),
        STRING => {
            // Each has a length at least: refused before the first is read.
            cursor.claim(field, count.checked_mul(LENGTH_BYTES).ok_or(GgufError::Overflow { field })?)?;
            (0..count).try_for_each(|_| string(cursor, field))
        }
        kind => cursor.skip(field, count, size(kind).ok_or(GgufError::Type { field, value: kind })?),
    }
}

fn string(cursor: &mut Cursor<'_, impl Read>, field: Field) -> Result<(), GgufError> {
    let length = cursor.string_length(field, MAX_STRING_BYTES)?;
    cursor.skip(field, length, 1)
}

/// Bytes of a value that has a fixed size.
fn size(kind: u32) -> Option<u64> {
    match kind {
        // u8, i8, bool
        0 | 1 | 7 => Some(1),
        // u16, i16
        U16 | 3 => Some(2),
        // u32, i32, f32
        U32..=6 => Some(4),
        // u64, i64, f64
        10..=12 => Some(8),
        _ => None,
    }
}

/// Most keys of a file. Models have some dozens.
pub const MAX_KEYS: u64 = 4096;
/// Longest key, in bytes.
pub const MAX_KEY_BYTES: u64 = 1024;
/// Longest value that is a text, in bytes. Chat templates have some ten thousand.
pub const MAX_STRING_BYTES: u64 = 4 << 20;
/// Most values of an array. The longest are those of vocabularies and of their merges.
pub const MAX_ARRAY: u64 = 4 << 20;

const ALIGNMENT: &str = "general.alignment";
const SPLIT: &str = "split.count";
const DEFAULT_ALIGNMENT: u64 = 32;
const LENGTH_BYTES: u64 = 8;
const U16: u32 = 2;
const U32: u32 = 4;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
