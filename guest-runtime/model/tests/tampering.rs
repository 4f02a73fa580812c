// SPDX-License-Identifier: Apache-2.0
//! Packs, whole and tampered with: each fault has its code, and nothing unverified is left behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use model::disk::Disk;
use model::{Ciphertexts, Created, Directory, Key, KeyName, Labels, Limits, PackError, PackIndex, Source};
use std::fs;
use std::path::{Path, PathBuf};
use types::{Blake3Digest, ModelId};

const LIMITS: Limits = Limits { object_size: 1000, segment_size: 256 };
const NO_LIMIT: u64 = u64::MAX;

/// A model of three files (empty, in one object, in three) and its pack.
struct Sample {
    directory: tempfile::TempDir,
    created: Created,
}

fn key() -> Key {
    Key::new(&[3; 32])
}

fn quiet(_: u64) {}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect()
}

fn write_model(directory: &Path) {
    fs::create_dir_all(directory.join("tokenizer")).unwrap();
    fs::write(directory.join("config.json"), "").unwrap();
    fs::write(directory.join("model.gguf"), content(2500)).unwrap();
    fs::write(directory.join("tokenizer/vocab.txt"), content(700)).unwrap();
    fs::write(directory.join(".cache"), "hidden").unwrap();
}

fn pack(input: &Path, key: &Key, output: &Path) -> Created {
    let labels = Labels { name: "tiny", revision: "r1", key: KeyName { id: "tiny-key".into(), version: 2 } };
    model::create(&labels, input, key, output, LIMITS, &quiet).unwrap()
}

impl Sample {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        write_model(&directory.path().join("in"));
        let created = pack(&directory.path().join("in"), &key(), &directory.path().join("pack"));
        Self { directory, created }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn object(&self, number: u32) -> PathBuf {
        self.path("pack").join(format!("objects/{number:06}"))
    }

    fn unpack_with(&self, key: &Key, expected: &ModelId) -> Result<model::Opened, PackError> {
        let target = self.path("out");
        let _ = fs::remove_dir_all(&target);
        fs::create_dir(&target).unwrap();
        let source = Directory::open(&self.path("pack"))?;
        let result = model::unpack(&source, key, expected, &target, NO_LIMIT, &quiet);
        // `verify` must find the same.
        let verified = model::verify(&source, key, expected, Ciphertexts::Hashed, &quiet);
        assert_eq!(format!("{result:?}"), format!("{verified:?}"));
        result
    }

    fn unpack(&self) -> Result<model::Opened, PackError> {
        self.unpack_with(&key(), &self.created.model)
    }

    /// The code of the refusal; whatever was written by then is complete and verified.
    fn code(&self) -> &'static str {
        let code = self.unpack().unwrap_err().code();
        for path in files_under(&self.path("out")) {
            let relative = path.strip_prefix(self.path("out")).unwrap();
            assert_eq!(fs::read(&path).unwrap(), fs::read(self.path("in").join(relative)).unwrap(), "{relative:?}");
        }
        code
    }

    /// Changes `pack.json`, keeping it canonical.
    fn edit_index(&self, edit: impl FnOnce(&mut PackIndex)) {
        let path = self.path("pack/pack.json");
        let mut index = PackIndex::parse(&fs::read(&path).unwrap()).unwrap();
        edit(&mut index);
        fs::write(&path, types::canonical::to_bytes(&index).unwrap()).unwrap();
    }

    /// Makes the digest in `pack.json` match an object again, as an attacker would.
    fn adopt(&self, number: u32) {
        let bytes = fs::read(self.object(number)).unwrap();
        self.edit_index(|index| {
            let object = &mut index.objects[usize::try_from(number).unwrap()];
            object.blake3 = Blake3Digest::of(&bytes);
            object.length = bytes.len().try_into().unwrap();
        });
    }
}

fn files_under(directory: &Path) -> Vec<PathBuf> {
    let mut files = vec![];
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_under(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

fn flip(path: &Path, position: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[position] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_comes_out_is_what_went_in() {
    let sample = Sample::new();
    let opened = sample.unpack().unwrap();
    assert_eq!(*opened.model(), sample.created.model);
    assert_eq!(opened.bytes(), 3200);
    assert_eq!(sample.created.skipped, [PathBuf::from(".cache")]);
    let names: Vec<_> = opened.files().iter().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(names, ["config.json", "model.gguf", "tokenizer/vocab.txt"]);
    for name in &names {
        assert_eq!(fs::read(sample.path("out").join(name)).unwrap(), fs::read(sample.path("in").join(name)).unwrap());
    }
    assert_eq!(files_under(&sample.path("out")).len(), 3);
    // Manifest, empty file, 2500 bytes as 1000 + 1000 + 500, 700 bytes.
    assert_eq!(sample.created.index.objects.len(), 6);
    model::verify_ciphertext(&Directory::open(&sample.path("pack")).unwrap(), &quiet).unwrap();
}

#[test]
fn another_key_makes_another_pack_of_the_same_identity() {
    let sample = Sample::new();
    let other = pack(&sample.path("in"), &Key::new(&[4; 32]), &sample.path("other"));
    assert_eq!(other.model, sample.created.model);
    assert_ne!(other.index.key_commitment, sample.created.index.key_commitment);
    let again = pack(&sample.path("in"), &key(), &sample.path("again"));
    assert_eq!(again.index.key_commitment, sample.created.index.key_commitment);
    assert_ne!(again.index.objects[0].blake3, sample.created.index.objects[0].blake3, "a salt was used twice");
}

#[test]
fn no_byte_of_plaintext_is_in_the_pack() {
    let sample = Sample::new();
    for path in files_under(&sample.path("pack")) {
        let bytes = fs::read(path).unwrap();
        for needle in [&b"vocab"[..], b"tiny@", &content(700)[..24]] {
            assert!(!bytes.windows(needle.len()).any(|window| window == needle));
        }
    }
}

#[test]
fn any_changed_byte_of_an_object_is_found_by_its_digest() {
    for number in 0..6 {
        let sample = Sample::new();
        let length = fs::read(sample.object(number)).unwrap().len();
        // Header length, salt, nonce prefix, content, last tag.
        for position in [0, 1, 33, 40, length / 2, length - 1] {
            flip(&sample.object(number), position);
            assert_eq!(sample.code(), "model_object_digest_mismatch", "object {number}, byte {position}");
            let source = Directory::open(&sample.path("pack")).unwrap();
            assert_eq!(model::verify_ciphertext(&source, &quiet).unwrap_err().code(), "model_object_digest_mismatch");
            flip(&sample.object(number), position);
        }
        sample.unpack().unwrap();
    }
}

#[test]
fn changed_objects_with_adopted_digests_do_not_decrypt() {
    for number in 0..6 {
        let sample = Sample::new();
        let length = fs::read(sample.object(number)).unwrap().len();
        for position in [0, 1, 33, 40, length - 1] {
            flip(&sample.object(number), position);
            sample.adopt(number);
            assert_eq!(sample.code(), "model_object_decrypt_failed", "object {number}, byte {position}");
            flip(&sample.object(number), position);
            sample.adopt(number);
        }
    }
}

#[test]
fn objects_cannot_change_places() {
    let sample = Sample::new();
    let (first, second) = (fs::read(sample.object(2)).unwrap(), fs::read(sample.object(3)).unwrap());
    assert_eq!(first.len(), second.len());
    fs::write(sample.object(2), second).unwrap();
    fs::write(sample.object(3), first).unwrap();
    assert_eq!(sample.code(), "model_object_digest_mismatch");
    sample.adopt(2);
    sample.adopt(3);
    assert_eq!(sample.code(), "model_object_decrypt_failed");
}

#[test]
fn segments_cannot_be_reordered_or_cut_off() {
    let sample = Sample::new();
    let bytes = fs::read(sample.object(2)).unwrap();
    let mut swapped = bytes.clone();
    swapped[256..768].rotate_left(256);
    fs::write(sample.object(2), swapped).unwrap();
    sample.adopt(2);
    assert_eq!(sample.code(), "model_object_decrypt_failed");
    fs::write(sample.object(2), &bytes[..768]).unwrap();
    assert_eq!(sample.code(), "model_pack_truncated");
    sample.adopt(2);
    assert_eq!(sample.code(), "model_manifest_malformed");
    let longer = [bytes.as_slice(), b"x"].concat();
    fs::write(sample.object(2), longer).unwrap();
    sample.edit_index(|index| index.objects[2].length = bytes.len().try_into().unwrap());
    assert_eq!(sample.code(), "model_pack_malformed");
}

#[test]
fn an_object_of_another_model_under_the_same_key_does_not_decrypt() {
    let (sample, other) = (Sample::new(), Sample::new());
    fs::write(other.path("in/config.json"), "x").unwrap();
    fs::remove_dir_all(other.path("pack")).unwrap();
    pack(&other.path("in"), &key(), &other.path("pack"));
    fs::copy(other.object(2), sample.object(2)).unwrap();
    sample.adopt(2);
    assert_eq!(sample.code(), "model_object_decrypt_failed");
}

#[test]
fn a_wrong_key_or_another_model_is_refused_before_anything_is_decrypted() {
    let sample = Sample::new();
    let error = sample.unpack_with(&Key::new(&[4; 32]), &sample.created.model).unwrap_err();
    assert_eq!(error.code(), "model_key_commitment_mismatch");
    let other = ModelId::new("tiny", "r1", Blake3Digest::of(b"other")).unwrap();
    assert_eq!(sample.unpack_with(&key(), &other).unwrap_err().code(), "model_identity_mismatch");
    let renamed = ModelId::new("tiny", "r2", *sample.created.model.identity()).unwrap();
    assert_eq!(sample.unpack_with(&key(), &renamed).unwrap_err().code(), "model_identity_mismatch");
}

#[test]
fn a_changed_public_part_is_refused() {
    let sample = Sample::new();
    let original = fs::read(sample.path("pack/pack.json")).unwrap();
    sample.edit_index(|index| index.identity = Blake3Digest::of(b"other"));
    assert_eq!(sample.code(), "model_identity_mismatch");
    let other = ModelId::new("tiny", "r1", Blake3Digest::of(b"other")).unwrap();
    assert_eq!(sample.unpack_with(&key(), &other).unwrap_err().code(), "model_object_decrypt_failed");
    for edit in [
        (|index| index.key_commitment = types::Hex32::new([0; 32])) as fn(&mut PackIndex),
        |index| index.segment_size = 512,
        |index| index.objects.truncate(5),
    ] {
        fs::write(sample.path("pack/pack.json"), &original).unwrap();
        sample.edit_index(edit);
        sample.unpack().unwrap_err();
    }
    for broken in [&original[1..], &original[..original.len() - 1], b"", b"{}", &[b' '; 2 << 20]] {
        fs::write(sample.path("pack/pack.json"), broken).unwrap();
        assert_eq!(Directory::open(&sample.path("pack")).unwrap_err().code(), "model_pack_malformed");
    }
}

/// Decryption and the files' digests prove more than that of a ciphertext; who has no key has nothing else.
#[test]
fn a_wrong_digest_in_the_public_part_is_found_by_who_publishes_not_by_the_guest() {
    let sample = Sample::new();
    sample.edit_index(|index| index.objects[3].blake3 = Blake3Digest::ZERO);
    let source = Directory::open(&sample.path("pack")).unwrap();
    let code = |result: Result<model::Opened, PackError>| result.unwrap_err().code();
    assert_eq!(
        code(model::verify(&source, &key(), &sample.created.model, Ciphertexts::Hashed, &quiet)),
        "model_object_digest_mismatch"
    );
    assert_eq!(model::verify_ciphertext(&source, &quiet).unwrap_err().code(), "model_object_digest_mismatch");
    fs::create_dir(sample.path("guest")).unwrap();
    model::unpack(&source, &key(), &sample.created.model, &sample.path("guest"), NO_LIMIT, &quiet).unwrap();
    for name in ["model.gguf", "tokenizer/vocab.txt"] {
        assert_eq!(fs::read(sample.path("guest").join(name)).unwrap(), fs::read(sample.path("in").join(name)).unwrap());
    }
}

/// A disk that fails now and then, and gives a byte or a few at a time.
struct Flaky {
    bytes: Vec<u8>,
    reads: std::sync::atomic::AtomicUsize,
    fails: fn(usize) -> bool,
}

impl model::ReadAt for Flaky {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let number = self.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if (self.fails)(number) {
            return Err(std::io::Error::other("input/output error"));
        }
        let length = buffer.len().min(1 + number % 300);
        self.bytes.as_slice().read_at(&mut buffer[..length], offset)
    }

    fn size(&self) -> std::io::Result<u64> {
        self.bytes.size()
    }
}

#[test]
fn a_read_that_breaks_off_is_resumed_and_one_that_never_works_ends() {
    let sample = Sample::new();
    let source = Directory::open(&sample.path("pack")).unwrap();
    model::disk::compose(&source, &sample.path("disk"), &quiet).unwrap();
    let bytes = fs::read(sample.path("disk")).unwrap();
    let unpack = |fails, name: &str| {
        fs::create_dir(sample.path(name)).unwrap();
        let disk = Disk::open(Flaky { bytes: bytes.clone(), reads: 0.into(), fails }).unwrap();
        model::unpack(&disk, &key(), &sample.created.model, &sample.path(name), NO_LIMIT, &quiet)
    };
    unpack(|number| number % 40 == 39, "often").unwrap();
    assert_eq!(fs::read(sample.path("often/model.gguf")).unwrap(), content(2500));
    assert_eq!(unpack(|number| number > 115, "never").unwrap_err().code(), "model_io_failed");
    assert!(files_under(&sample.path("never")).iter().all(|path| fs::read(path).unwrap().is_empty()));
}

#[test]
fn a_target_that_is_not_empty_or_too_small_is_refused() {
    let sample = Sample::new();
    let source = Directory::open(&sample.path("pack")).unwrap();
    let unpack = |target: &Path, limit| model::unpack(&source, &key(), &sample.created.model, target, limit, &quiet);
    let error = unpack(&sample.path("in"), NO_LIMIT).unwrap_err();
    assert_eq!((error.code(), error.is_refusal()), ("model_target_not_empty", false));
    let target = tempfile::tempdir().unwrap();
    assert_eq!(unpack(target.path(), 3199).unwrap_err().code(), "model_too_large");
    assert!(files_under(target.path()).is_empty());
    unpack(target.path(), 3200).unwrap();
}

mod disk {
    use super::*;

    fn disk(sample: &Sample) -> Vec<u8> {
        let source = Directory::open(&sample.path("pack")).unwrap();
        model::disk::compose(&source, &sample.path("disk"), &quiet).unwrap();
        fs::read(sample.path("disk")).unwrap()
    }

    fn code(bytes: Vec<u8>, sample: &Sample) -> &'static str {
        let result = Disk::open(bytes)
            .and_then(|disk| model::verify(&disk, &key(), &sample.created.model, Ciphertexts::Hashed, &quiet));
        result.map_or_else(|error| error.code(), |_| "accepted")
    }

    #[test]
    fn a_pack_on_a_disk_is_the_same_pack() {
        let sample = Sample::new();
        let bytes = disk(&sample);
        assert_eq!(bytes.len() % 4096, 0);
        let opened = Disk::open(bytes.clone()).unwrap();
        assert_eq!(*opened.index(), sample.created.index);
        assert_eq!(code(bytes, &sample), "accepted");
        let target = tempfile::tempdir().unwrap();
        let file = fs::File::open(sample.path("disk")).unwrap();
        model::unpack(&Disk::open(file).unwrap(), &key(), &sample.created.model, target.path(), NO_LIMIT, &quiet)
            .unwrap();
        assert_eq!(fs::read(target.path().join("model.gguf")).unwrap(), content(2500));
        assert!(
            !sample.path("out").exists()
                && files_under(sample.directory.path()).iter().all(|path| !path.ends_with(".tmp"))
        );
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let sample = Sample::new();
        let bytes = disk(&sample);
        let changed = |position: usize, value: &[u8]| {
            let mut bytes = bytes.clone();
            bytes[position..position + value.len()].copy_from_slice(value);
            code(bytes, &sample)
        };
        assert_eq!(changed(0, b"X"), "model_pack_malformed");
        assert_eq!(changed(8, &[2]), "model_pack_malformed");
        assert_eq!(changed(12, &[1]), "model_pack_malformed");
        assert_eq!(changed(16, &u64::MAX.to_le_bytes()), "model_pack_malformed");
        assert_eq!(changed(16, &[0; 8]), "model_pack_malformed");
        assert_eq!(changed(24, &u64::MAX.to_le_bytes()), "model_pack_malformed");
        assert_eq!(changed(24, &(4096_u64).to_le_bytes()), "model_pack_malformed");
        assert_eq!(changed(4095, &[1]), "model_pack_malformed");
        assert_eq!(changed(4096, b"["), "model_pack_malformed");
        for length in [0, 100, 4096, 5000, bytes.len() - 4096, bytes.len() - 1] {
            assert_eq!(code(bytes[..length].to_vec(), &sample), "model_pack_truncated", "{length}");
        }
        assert_eq!(code([bytes.as_slice(), &[0; 4096]].concat(), &sample), "model_pack_malformed");
    }

    #[test]
    fn a_flipped_byte_in_any_block_is_refused_or_is_padding() {
        let sample = Sample::new();
        let bytes = disk(&sample);
        let mut refused = 0;
        for position in (0..bytes.len()).step_by(97) {
            let mut flipped = bytes.clone();
            flipped[position] ^= 0x40;
            let is_padding = position >= 4096 && bytes[position] == 0;
            let code = code(flipped, &sample);
            assert!(code != "accepted" || is_padding, "byte {position}");
            refused += usize::from(code != "accepted");
        }
        assert!(refused > 40, "{refused}");
    }
}

mod making {
    use super::*;
    use model::CreateError;

    fn try_pack(input: &Path, name: &str, output: &Path) -> Result<Created, CreateError> {
        let labels = Labels { name, revision: "r1", key: KeyName { id: "k".into(), version: 1 } };
        model::create(&labels, input, &key(), output, LIMITS, &quiet)
    }

    #[test]
    fn bad_input_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let (input, output) = (directory.path().join("in"), directory.path().join("pack"));
        fs::create_dir(&input).unwrap();
        assert!(matches!(try_pack(&input, "m", &output), Err(CreateError::Files(_))));
        fs::write(input.join("a b"), "").unwrap();
        assert!(matches!(try_pack(&input, "m", &output), Err(CreateError::Path { .. })));
        fs::rename(input.join("a b"), input.join("a")).unwrap();
        assert!(matches!(try_pack(&input, "a/b", &output), Err(CreateError::Label(_))));
        std::os::unix::fs::symlink(&input, input.join("loop")).unwrap();
        assert!(matches!(try_pack(&input, "m", &output), Err(CreateError::Path { .. })));
        fs::remove_file(input.join("loop")).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "only the input is there");
        try_pack(&input, "m", &output).unwrap();
        assert!(matches!(try_pack(&input, "m", &output), Err(CreateError::OutputExists(_))));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_link_to_a_file_is_packed_as_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let input = directory.path().join("in");
        fs::create_dir(&input).unwrap();
        fs::write(directory.path().join("blob"), "weights").unwrap();
        std::os::unix::fs::symlink("../blob", input.join("model.gguf")).unwrap();
        let linked = try_pack(&input, "m", &directory.path().join("one")).unwrap();
        fs::remove_file(input.join("model.gguf")).unwrap();
        fs::write(input.join("model.gguf"), "weights").unwrap();
        assert_eq!(try_pack(&input, "m", &directory.path().join("two")).unwrap().model, linked.model);
    }
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_files_survive(lengths in prop::collection::vec(0_usize..3000, 1..5), object_size in 100_u64..2500, segment_size in 128_u32..900) {
            let directory = tempfile::tempdir().unwrap();
            let input = directory.path().join("in");
            fs::create_dir(&input).unwrap();
            for (number, length) in lengths.iter().enumerate() {
                fs::write(input.join(format!("f{number}")), content(*length)).unwrap();
            }
            let labels = Labels { name: "m", revision: "r", key: KeyName { id: "k".into(), version: 1 } };
            let limits = Limits { object_size, segment_size };
            let output = directory.path().join("pack");
            let created = model::create(&labels, &input, &key(), &output, limits, &quiet).unwrap();
            let target = tempfile::tempdir().unwrap();
            let source = Directory::open(&output).unwrap();
            model::unpack(&source, &key(), &created.model, target.path(), NO_LIMIT, &quiet).unwrap();
            for (number, length) in lengths.iter().enumerate() {
                prop_assert_eq!(fs::read(target.path().join(format!("f{number}"))).unwrap(), content(*length));
            }
        }
    }
}
