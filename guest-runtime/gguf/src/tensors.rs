// SPDX-License-Identifier: Apache-2.0
//! Names, shapes, types and places of tensors.

use crate::{Field, GgufError, cursor::Cursor};
use std::{collections::HashSet, io::Read};

/// Reads what is said of all tensors and gives the bytes of their data.
pub(crate) fn read(cursor: &mut Cursor<'_, impl Read>, tensors: u64, alignment: u64) -> Result<u64, GgufError> {
    let (mut names, mut end) = (HashSet::new(), 0_u64);
    for number in 0..tensors {
        let field = Field::Tensor(number);
        let overflow = GgufError::Overflow { field };
        if !names.insert(cursor.name(field, MAX_NAME_BYTES)?) {
            return Err(GgufError::Twice { field });
        }
        let bytes = size(cursor, field)?;
        let (offset, expected) = (cursor.u64(field)?, end.checked_next_multiple_of(alignment).ok_or(overflow)?);
        if offset != expected {
            return Err(GgufError::Offset { field, offset, expected });
        }
        end = offset.checked_add(bytes).filter(|end| *end <= MAX_DATA_BYTES).ok_or(overflow)?;
    }
    Ok(end)
}

/// Bytes of a tensor, by its shape and type.
fn size(cursor: &mut Cursor<'_, impl Read>, field: Field) -> Result<u64, GgufError> {
    let overflow = GgufError::Overflow { field };
    let dimensions = cursor.u32(field)?;
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        return Err(GgufError::Dimensions { field });
    }
    let row = cursor.u64(field)?;
    let (mut rows, mut empty) = (1_u64, row == 0);
    for _ in 1..dimensions {
        let length = cursor.u64(field)?;
        empty |= length == 0;
        rows = rows.checked_mul(length).ok_or(overflow)?;
    }
    if empty {
        return Err(GgufError::Dimensions { field });
    }
    // The library counts elements with a sign.
    row.checked_mul(rows).filter(|elements| i64::try_from(*elements).is_ok()).ok_or(overflow)?;
    let value = cursor.u32(field)?;
    let (block, bytes) = block(value).ok_or(GgufError::Type { field, value })?;
    if !row.is_multiple_of(block) {
        return Err(GgufError::Row { field, elements: row, value });
    }
    let blocks = row.checked_div(block).and_then(|blocks| blocks.checked_mul(rows));
    blocks.and_then(|blocks| blocks.checked_mul(bytes)).ok_or(overflow)
}

/// Elements and bytes of a block of a type (`enum ggml_type` of ggml.h; `static_assert`s of ggml-common.h).
fn block(kind: u32) -> Option<(u64, u64)> {
    Some(match kind {
        0 => (1, 4),      // F32
        1 => (1, 2),      // F16
        2 => (32, 18),    // Q4_0
        3 => (32, 20),    // Q4_1
        6 => (32, 22),    // Q5_0
        7 => (32, 24),    // Q5_1
        8 => (32, 34),    // Q8_0
        9 => (32, 36),    // Q8_1
        10 => (256, 84),  // Q2_K
        11 => (256, 110), // Q3_K
        12 => (256, 144), // Q4_K
        13 => (256, 176), // Q5_K
        14 => (256, 210), // Q6_K
        15 => (256, 292), // Q8_K
        16 => (256, 66),  // IQ2_XXS
        17 => (256, 74),  // IQ2_XS
        18 => (256, 98),  // IQ3_XXS
        19 => (256, 50),  // IQ1_S
        20 => (32, 18),   // IQ4_NL
        21 => (256, 110), // IQ3_S
        22 => (256, 82),  // IQ2_S
        23 => (256, 136), // IQ4_XS
        24 => (1, 1),     // I8
        25 => (1, 2),     // I16
        26 => (1, 4),     // I32
        27 => (1, 8),     // I64
        28 => (1, 8),     // F64
        29 => (256, 56),  // IQ1_M
        30 => (1, 2),     // BF16
        34 => (256, 54),  // TQ1_0
        35 => (256, 66),  // TQ2_0
        39 => (32, 17),   // MXFP4
        40 => (64, 36),   // NVFP4
        41 => (128, 18),  // Q1_0
        42 => (64, 18),   // Q2_0
        _ => return None,
    })
}

/// Most tensors of a file. The largest models have some thousands.
pub const MAX_TENSORS: u64 = 65_536;
/// Longest name, in bytes: ggml keeps 64 with the zero at its end.
pub const MAX_NAME_BYTES: u64 = 63;
/// Most dimensions, as ggml's.
pub const MAX_DIMENSIONS: u32 = 4;
/// Largest alignment, in bytes.
pub const MAX_ALIGNMENT: u32 = 65_536;
/// Sums stay far below an overflow: no file has so many bytes.
const MAX_DATA_BYTES: u64 = 1 << 60;
