// SPDX-License-Identifier: Apache-2.0
//! Files that are right, and what each lie is refused with.

use crate::{Field, GgufError, Header, MAX_ARRAY, MAX_HEADER_BYTES, MAX_KEYS, MAX_STRING_BYTES, MAX_TENSORS, check};
use proptest::prelude::*;

/// A file under construction.
#[derive(Clone)]
struct File {
    version: u32,
    keys: Vec<(String, Vec<u8>)>,
    tensors: Vec<Tensor>,
    alignment: usize,
    /// What the counts say beyond the truth.
    more_tensors: u64,
    more_keys: u64,
    data: usize,
}

#[derive(Clone)]
struct Tensor {
    name: String,
    shape: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl File {
    /// Two tensors: 64 × 2 of F32 (512 bytes), 32 × 3 of Q8_0 (102 bytes), padded to 128.
    fn good() -> Self {
        let tensor =
            |name: &str, shape: &[u64], kind, offset| Tensor { name: name.into(), shape: shape.into(), kind, offset };
        Self {
            version: 3,
            keys: vec![
                ("general.architecture".into(), text("llama")),
                ("llama.block_count".into(), typed(4, &30_u32.to_le_bytes())),
                ("tokenizer.ggml.tokens".into(), array(8, 2, &[string("a"), string("bc")].concat())),
                ("tokenizer.ggml.scores".into(), array(6, 2, &[0; 8])),
                ("a.bool".into(), typed(7, &[1])),
                ("a.double".into(), typed(12, &[0; 8])),
            ],
            tensors: vec![tensor("token_embd.weight", &[64, 2], 0, 0), tensor("output.weight", &[32, 3], 8, 512)],
            alignment: 32,
            more_tensors: 0,
            more_keys: 0,
            data: 512 + 128,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).wrapping_add(self.more_tensors).to_le_bytes());
        bytes.extend((self.keys.len() as u64).wrapping_add(self.more_keys).to_le_bytes());
        for (key, value) in &self.keys {
            bytes.extend(string(key));
            bytes.extend(value);
        }
        for tensor in &self.tensors {
            bytes.extend(string(&tensor.name));
            bytes.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().for_each(|length| bytes.extend(length.to_le_bytes()));
            bytes.extend(tensor.kind.to_le_bytes());
            bytes.extend(tensor.offset.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.resize(bytes.len() + self.data, 7);
        bytes
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Result<Header, GgufError> {
        let mut file = self.clone();
        change(&mut file);
        checked(&file.bytes())
    }
}

fn checked(bytes: &[u8]) -> Result<Header, GgufError> {
    check(&mut &bytes[..], bytes.len() as u64)
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn typed(kind: u32, value: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], value].concat()
}

fn text(text: &str) -> Vec<u8> {
    typed(8, &string(text))
}

fn array(kind: u32, count: u64, values: &[u8]) -> Vec<u8> {
    typed(9, &[&kind.to_le_bytes()[..], &count.to_le_bytes(), values].concat())
}

#[test]
fn a_file_that_keeps_its_word_is_accepted() {
    let bytes = File::good().bytes();
    let header = checked(&bytes).unwrap();
    let data_start = bytes.len() as u64 - 640;
    // The last tensor ends before the padding behind it.
    assert_eq!(header, Header { version: 3, keys: 6, tensors: 2, data_start, data_bytes: 614 });
    assert_eq!(File::good().with(|f| f.version = 2).unwrap().version, 2);
    // Padding at the end is not everybody's habit.
    assert!(File::good().with(|f| f.data = 614).is_ok());
    let aligned = File::good().with(|f| {
        f.keys.push(("general.alignment".into(), typed(4, &256_u32.to_le_bytes())));
        (f.alignment, f.data) = (256, 768);
    });
    assert!(aligned.is_ok(), "{aligned:?}");
    let joined = File::good().with(|f| f.keys.push(("split.count".into(), typed(2, &[1, 0]))));
    assert!(joined.is_ok(), "{joined:?}");
}

#[test]
fn lies_about_counts_and_lengths_are_refused_before_they_cost_anything() {
    let good = File::good();
    let too_many = |field, count, most| Err(GgufError::TooMany { field, count, most });
    assert_eq!(good.with(|f| f.more_tensors = 1 << 40), too_many(Field::Tensors, (1 << 40) + 2, MAX_TENSORS));
    assert_eq!(good.with(|f| f.more_tensors = u64::MAX - 1), Err(GgufError::NoTensors));
    assert_eq!(good.with(|f| f.more_keys = u64::MAX - 6), too_many(Field::Keys, u64::MAX, MAX_KEYS));
    assert!(matches!(
        good.with(|f| f.more_keys = 1),
        Err(GgufError::TooLong { .. } | GgufError::NotText { .. } | GgufError::Type { .. })
    ));
    assert!(good.with(|f| f.more_tensors = 1).is_err());
    let value = |value: Vec<u8>| good.with(|f| f.keys = vec![("k".into(), value)]);
    let first = Field::Value(0);
    assert_eq!(value(array(0, u64::MAX, &[])), too_many(first, u64::MAX, MAX_ARRAY));
    // Each is within its cap, but the file has not so many bytes.
    assert!(
        matches!(value(array(12, MAX_ARRAY, &[])), Err(GgufError::Truncated { field, needed, .. }) if field == first && needed == MAX_ARRAY * 8)
    );
    assert!(
        matches!(value(array(8, MAX_ARRAY, &[])), Err(GgufError::Truncated { field, needed, .. }) if field == first && needed == MAX_ARRAY * 8)
    );
    assert!(
        matches!(value(typed(8, &(MAX_STRING_BYTES).to_le_bytes())), Err(GgufError::Truncated { field, .. }) if field == first)
    );
    let length = MAX_STRING_BYTES + 1;
    assert_eq!(
        value(typed(8, &length.to_le_bytes())),
        Err(GgufError::TooLong { field: first, length, most: MAX_STRING_BYTES })
    );
    assert!(matches!(
        good.with(|f| f.keys[0].0 = "k".repeat(1025)),
        Err(GgufError::TooLong { field: Field::Key(0), .. })
    ));
    assert!(matches!(
        good.with(|f| f.tensors[1].name = "n".repeat(64)),
        Err(GgufError::TooLong { field: Field::Tensor(1), .. })
    ));
}

#[test]
fn values_have_types_that_are_known_and_arrays_no_arrays() {
    let good = File::good();
    let value = |value: Vec<u8>| good.with(|f| f.keys = vec![("k".into(), value)]);
    let field = Field::Value(0);
    assert_eq!(value(typed(13, &[0; 8])), Err(GgufError::Type { field, value: 13 }));
    assert_eq!(value(array(99, 1, &[0; 8])), Err(GgufError::Type { field, value: 99 }));
    assert_eq!(value(array(9, 1, &array(0, 1, &[0]))), Err(GgufError::Nested { field }));
    for (kind, size) in [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (7, 1), (10, 8), (11, 8), (12, 8)] {
        assert!(value(typed(kind, &vec![0; size])).is_ok(), "{kind}");
        assert!(value(array(kind, 3, &vec![0; 3 * size])).is_ok(), "{kind}");
    }
    assert_eq!(good.with(|f| f.keys[1].0 = f.keys[0].0.clone()), Err(GgufError::Twice { field: Field::Key(1) }));
    for key in ["", "a\0b"] {
        assert_eq!(good.with(|f| f.keys[2].0 = key.into()), Err(GgufError::NotText { field: Field::Key(2) }));
    }
    for alignment in [0_u32, 4, 48, 1 << 17, u32::MAX] {
        let lied = good.with(|f| f.keys.push(("general.alignment".into(), typed(4, &alignment.to_le_bytes()))));
        assert_eq!(lied, Err(GgufError::Alignment { alignment }));
    }
    let lied = good.with(|f| f.keys.push(("general.alignment".into(), typed(10, &32_u64.to_le_bytes()))));
    assert_eq!(lied, Err(GgufError::OtherType { field: Field::Alignment }));
    assert_eq!(good.with(|f| f.keys.push(("split.count".into(), typed(2, &[2, 0])))), Err(GgufError::Split));
    assert!(matches!(
        good.with(|f| f.keys.push(("split.count".into(), typed(4, &[2, 0, 0, 0])))),
        Err(GgufError::OtherType { .. })
    ));
}

#[test]
fn tensors_are_as_large_as_their_shapes_and_lie_in_the_file() {
    let good = File::good();
    let field = Field::Tensor(1);
    let shape = |shape: &[u64]| good.with(|f| f.tensors[1].shape = shape.into());
    for bad in [&[][..], &[0], &[32, 0], &[32, 1, 1, 1, 1]] {
        assert_eq!(shape(bad), Err(GgufError::Dimensions { field }), "{bad:?}");
    }
    for (elements, kind) in [(33, 8), (255, 12), (1, 2)] {
        let lied = good.with(|f| (f.tensors[1].shape, f.tensors[1].kind) = (vec![elements, 3], kind));
        assert_eq!(lied, Err(GgufError::Row { field, elements, value: kind }));
    }
    for bad in [&[32, u64::MAX][..], &[1 << 32, 1 << 31], &[32, 1 << 30, 1 << 30, 1 << 30], &[1 << 62]] {
        assert_eq!(shape(bad), Err(GgufError::Overflow { field }), "{bad:?}");
    }
    for kind in [4, 5, 31, 33, 36, 38, 43, u32::MAX] {
        assert_eq!(good.with(|f| f.tensors[1].kind = kind), Err(GgufError::Type { field, value: kind }));
    }
    assert_eq!(good.with(|f| f.tensors[1].name = f.tensors[0].name.clone()), Err(GgufError::Twice { field }));
    // Overlapping, in the middle of a block, far away, elsewhere in the order.
    for offset in [0, 480, 513, 544, 1 << 50, u64::MAX] {
        let lied = good.with(|f| f.tensors[1].offset = offset);
        assert_eq!(lied, Err(GgufError::Offset { field, offset, expected: 512 }));
    }
    assert!(matches!(good.with(|f| f.tensors.swap(0, 1)), Err(GgufError::Offset { .. })));
    // More rows than the file has.
    assert!(matches!(shape(&[32, 4]), Err(GgufError::Short { .. })));
    assert!(matches!(shape(&[32, 1 << 40]), Err(GgufError::Short { .. })));
    assert!(matches!(good.with(|f| f.data = 613), Err(GgufError::Short { .. })));
    assert!(matches!(good.with(|f| f.data = 614 + 32), Err(GgufError::Trailing { .. })));
}

#[test]
fn other_files_are_refused() {
    for bytes in [&b""[..], b"GGU", b"GGML\x03\0\0\0", b"{}"] {
        assert!(checked(bytes).is_err());
    }
    for version in [0, 1, 4, 3_u32.swap_bytes()] {
        assert_eq!(File::good().with(|f| f.version = version), Err(GgufError::Version { version }));
    }
}

#[test]
fn a_length_that_the_source_does_not_keep_is_an_error() {
    let bytes = File::good().bytes();
    let ended = check(&mut &bytes[..40], bytes.len() as u64);
    assert!(matches!(ended, Err(GgufError::Truncated { left: 0, .. })), "{ended:?}");
}

/// Zeros without end: keys of 1 MiB would be read for hours.
#[test]
fn a_header_has_an_end() {
    let mut file = File::good();
    let value = array(0, MAX_ARRAY, &vec![0; MAX_ARRAY as usize]);
    file.keys = (0..33).map(|number| (format!("k{number}"), value.clone())).collect();
    let bytes = file.bytes();
    assert!(bytes.len() as u64 > MAX_HEADER_BYTES);
    assert_eq!(checked(&bytes), Err(GgufError::Header));
    file.keys.truncate(31);
    assert!(checked(&file.bytes()).is_ok());
}

/// Every type's block, against the sizes that the library asserts when it is compiled.
#[test]
fn whole_blocks_of_every_type_have_their_size() {
    for (kind, elements, bytes) in [
        (0, 1, 4),
        (1, 1, 2),
        (2, 32, 18),
        (3, 32, 20),
        (6, 32, 22),
        (7, 32, 24),
        (8, 32, 34),
        (9, 32, 36),
        (10, 256, 84),
        (11, 256, 110),
        (12, 256, 144),
        (13, 256, 176),
        (14, 256, 210),
        (15, 256, 292),
        (16, 256, 66),
        (17, 256, 74),
        (18, 256, 98),
        (19, 256, 50),
        (20, 32, 18),
        (21, 256, 110),
        (22, 256, 82),
        (23, 256, 136),
        (24, 1, 1),
        (25, 1, 2),
        (26, 1, 4),
        (27, 1, 8),
        (28, 1, 8),
        (29, 256, 56),
        (30, 1, 2),
        (34, 256, 54),
        (35, 256, 66),
        (39, 32, 17),
        (40, 64, 36),
        (41, 128, 18),
        (42, 64, 18),
    ] {
        let mut file = File::good();
        file.tensors.truncate(1);
        (file.tensors[0].kind, file.tensors[0].shape, file.data) = (kind, vec![elements, 5], bytes * 5);
        assert_eq!(checked(&file.bytes()).unwrap().data_bytes, bytes as u64 * 5, "{kind}");
        file.data -= 1;
        assert!(matches!(checked(&file.bytes()), Err(GgufError::Short { .. })), "{kind}");
    }
}

proptest! {
    #[test]
    fn what_is_accepted_lies_in_the_file(changes in prop::collection::vec((0_usize..600, any::<u8>()), 1..4), cut in 0_usize..40) {
        let mut bytes = File::good().bytes();
        bytes.truncate(bytes.len() - cut);
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if let Ok(header) = checked(&bytes) {
            prop_assert!(header.data_start + header.data_bytes <= bytes.len() as u64);
            prop_assert!(header.tensors >= 1 && header.keys <= MAX_KEYS);
        }
    }

    #[test]
    fn any_cut_is_refused(cut in 27_usize..1100) {
        let bytes = File::good().bytes();
        prop_assert!(checked(&bytes[..bytes.len().saturating_sub(cut)]).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = checked(&bytes);
        let _ = checked(&[b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0", &bytes[..]].concat());
    }
}
