// SPDX-License-Identifier: Apache-2.0
//! Model packs: the public part, the list of files, and encrypted objects.

use std::path::{Component, Path};
use std::sync::OnceLock;

use model::{
    Ciphertexts, Key, KeyName, Labels, Limits, Manifest, Object, PackError, PackIndex, ReadAt, Source, create, verify,
};
use types::{Blake3Digest, Document as _, ModelId};

use crate::u16_at;

/// `i` and a `pack.json`; `m`, its length (two bytes), one, and a manifest; `c` and changes of a pack that was made at the start
/// of the run: four bytes each, kind, which object, place and value.
pub fn pack(bytes: &[u8]) -> bool {
    match bytes.split_first() {
        Some((b'i', bytes)) => index(bytes),
        Some((b'm', bytes)) => {
            let Some((index, manifest)) = u16_at(bytes, 0).and_then(|len| bytes.get(2..)?.split_at_checked(len)) else {
                return false;
            };
            list(index, manifest)
        }
        Some((b'c', changes)) => changed(changes),
        _ => false,
    }
}

/// One spelling, bounded, and every length one that a ciphertext can have.
fn index(bytes: &[u8]) -> bool {
    let Ok(index) = PackIndex::parse(bytes) else { return false };
    assert_eq!(index.to_canonical().as_deref(), Ok(bytes), "pack.json has one spelling");
    let sum: u128 = index.objects.iter().map(|object| u128::from(object.length)).sum();
    assert_eq!(u128::from(index.ciphertext_length()), sum, "the lengths add up");
    for (number, object) in (0..).zip(&index.objects) {
        assert_eq!(object.index, number, "objects are numbered");
        let plain = plaintext(object.length, index.segment_size).expect("a length of no ciphertext");
        assert_eq!(ciphertext(plain, index.segment_size), u128::from(object.length), "a length of no ciphertext");
    }
    true
}

/// Names stay below the model's directory, each once, and the files are exactly what is in the objects.
fn list(index: &[u8], bytes: &[u8]) -> bool {
    let Ok(index) = PackIndex::parse(index) else { return false };
    let Ok(manifest) = Manifest::parse(bytes, &index) else { return false };
    assert_eq!(manifest.to_canonical().as_deref(), Ok(bytes), "a manifest has one spelling");
    for file in &manifest.files {
        let path = Path::new(&file.path);
        let plain =
            |part: Component<'_>| matches!(part, Component::Normal(name) if !name.as_encoded_bytes().starts_with(b"."));
        assert!(path.components().all(plain), "{:?}", file.path);
        assert!(file.path.is_ascii() && !file.path.contains("//") && !file.path.ends_with('/'), "{:?}", file.path);
        let below = manifest.files.iter().filter(|other| Path::new(&other.path).starts_with(path));
        assert_eq!(below.count(), 1, "{:?} is two files, or a directory", file.path);
    }
    let held = index.objects.iter().skip(1);
    let held = held.map(|object| plaintext(object.length, index.segment_size).expect("the index was accepted"));
    assert_eq!(u128::from(manifest.plaintext_length()), held.sum::<u128>(), "bytes that belong to no file, or to two");
    true
}

/// Who changes ciphertext and writes digests and lengths anew, but has no key, changes nothing.
fn changed(changes: &[u8]) -> bool {
    let made = made();
    let mut objects = made.objects.clone();
    for [kind, which, place, value] in changes.as_chunks::<4>().0.iter().take(MAX_CHANGES).copied() {
        let count = objects.len();
        let (at, other) = (usize::from(which) % count, usize::from(place) % count);
        let object = &mut objects[at];
        let place = usize::from(place) % object.len().max(1);
        match kind % 6 {
            0 => object.get_mut(place).into_iter().for_each(|byte| *byte ^= value),
            1 => object.truncate(place),
            2 => object.push(value),
            3 => object.insert(place, value),
            4 => objects.swap(at, other),
            _ => objects[at] = made.objects[other].clone(),
        }
    }
    let mut index = made.index.clone();
    index.objects = (0..).zip(&objects).map(|(index, bytes)| object(index, bytes)).collect();
    let Ok(index) = index.to_canonical().map_err(drop).and_then(|bytes| PackIndex::parse(&bytes).map_err(drop)) else {
        return false;
    };
    let source = Memory { index, objects };
    let opened = verify(&source, &Key::new(&KEY), &made.model, Ciphertexts::Hashed, &|_| {});
    assert_eq!(opened.is_ok(), source.objects == made.objects, "objects that were changed, or those that were made");
    opened.is_ok()
}

/// A pack in memory.
struct Memory {
    index: PackIndex,
    objects: Vec<Vec<u8>>,
}

impl Source for Memory {
    fn index(&self) -> &PackIndex {
        &self.index
    }

    fn open(&self, object: &Object) -> Result<Box<dyn ReadAt + '_>, PackError> {
        let bytes = usize::try_from(object.index).ok().and_then(|index| self.objects.get(index));
        Ok(Box::new(bytes.map(Vec::as_slice).unwrap_or_default()))
    }
}

/// The pack that changes are made to.
struct Made {
    index: PackIndex,
    objects: Vec<Vec<u8>>,
    model: ModelId,
}

fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory");
        let (input, output) = (directory.path().join("model"), directory.path().join("pack"));
        std::fs::create_dir(&input).expect("a directory");
        std::fs::write(input.join("config.json"), "").expect("a file");
        std::fs::write(input.join("weights.gguf"), [7; 250]).expect("a file");
        let labels = Labels { name: "m", revision: "1", key: KeyName { id: "k".to_owned(), version: 1 } };
        let limits = Limits { object_size: 150, segment_size: 128 };
        let created = create(&labels, &input, &Key::new(&KEY), &output, limits, &|_| {}).expect("a pack");
        let read = |index: u32| std::fs::read(output.join(model::object_file(index))).expect("an object");
        let objects = created.index.objects.iter().map(|object| read(object.index)).collect();
        Made { index: created.index, objects, model: created.model }
    })
}

fn object(index: u32, bytes: &[u8]) -> Object {
    Object { blake3: Blake3Digest::of(bytes), index, length: u64::try_from(bytes.len()).expect("a length") }
}

/// Length of the plaintext of a ciphertext: header, and a tag in each segment (Tink's AES-GCM-HKDF).
fn plaintext(ciphertext: u64, segment: u32) -> Option<u128> {
    let (ciphertext, segment) = (u128::from(ciphertext), u128::from(segment));
    ciphertext.checked_sub(HEADER + TAG * ciphertext.div_ceil(segment))
}

/// As it is written: segment by segment until nothing is left.
fn ciphertext(plaintext: u128, segment: u32) -> u128 {
    let body = HEADER + plaintext;
    let each = u128::from(segment) - TAG;
    let segments = body / each + u128::from(!body.is_multiple_of(each));
    body + TAG * segments
}

const KEY: [u8; 32] = [21; 32];
const HEADER: u128 = 40;
const TAG: u128 = 16;
const MAX_CHANGES: usize = 16;
