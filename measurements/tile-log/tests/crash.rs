// SPDX-License-Identifier: Apache-2.0
//! What a crash, a full disk or a meddler leaves behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use release::log::{LogSigner, SignedCheckpoint};
use tile_log::{AppendError, OpenError, TileDir, TileLog, VerifyError, verify};

fn signer() -> LogSigner {
    LogSigner::new("example.invalid/log", &[3; 32]).unwrap()
}

fn entry(index: u64) -> Vec<u8> {
    format!("entry {index}").into_bytes()
}

fn grow(dir: &Path, size: u64) {
    let mut log = if dir.join("checkpoint").exists() {
        TileLog::open(dir, signer()).unwrap()
    } else {
        TileLog::create(dir, signer()).unwrap()
    };
    let entries: Vec<_> = (log.checkpoint().head().size()..size).map(entry).collect();
    if !entries.is_empty() {
        log.append(&entries.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
    }
}

type Snapshot = BTreeMap<PathBuf, Vec<u8>>;

fn snapshot(dir: &Path) -> Snapshot {
    fn walk(dir: &Path, root: &Path, found: &mut Snapshot) {
        for item in fs::read_dir(dir).unwrap() {
            let path = item.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    let mut found = Snapshot::new();
    walk(dir, dir, &mut found);
    found
}

fn restore(dir: &Path, files: &Snapshot) {
    let _ = fs::remove_dir_all(dir);
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn check(dir: &Path, size: u64) {
    let checkpoint = verify(&TileDir::new(dir), signer().public(), |index, bytes| {
        if bytes == entry(index) { Ok(()) } else { Err("another entry".into()) }
    });
    assert_eq!(checkpoint.unwrap().head().size(), size);
}

/// An append from `before` to `after` writes files in an order; the crash may come at each byte of each of them.
/// Whatever is left, the log opens with exactly the acknowledged entries and goes on.
#[test]
fn a_crash_at_any_byte_of_an_append_leaves_the_old_log_or_the_new_one() {
    for size in [0u64, 1, 2, 255, 256] {
        let dir = tempfile::tempdir().unwrap();
        grow(dir.path(), size);
        let before = snapshot(dir.path());
        grow(dir.path(), size + 1);
        let after = snapshot(dir.path());
        let mut written: Vec<_> = after.iter().filter(|(name, bytes)| before.get(*name) != Some(*bytes)).collect();
        // The checkpoint is written last.
        written.sort_by_key(|(name, _)| name.as_os_str() == "checkpoint");
        let crashed = tempfile::tempdir().unwrap();
        let mut so_far = before.clone();
        for (name, bytes) in written {
            restore(crashed.path(), &so_far);
            // A file is written under its temporary name, then renamed.
            let temporary = crashed.path().join(name.with_added_extension("tmp"));
            fs::create_dir_all(temporary.parent().unwrap()).unwrap();
            for length in (0..=bytes.len()).step_by(if bytes.len() > 512 { 61 } else { 1 }) {
                fs::write(&temporary, &bytes[..length]).unwrap();
                let log = TileLog::open(crashed.path(), signer()).unwrap();
                assert_eq!(log.checkpoint().head().size(), size, "{} cut at {length}", name.display());
            }
            check(crashed.path(), size);
            grow(crashed.path(), size + 3);
            check(crashed.path(), size + 3);
            so_far.insert(name.clone(), bytes.clone());
        }
        restore(crashed.path(), &so_far);
        assert_eq!(TileLog::open(crashed.path(), signer()).unwrap().checkpoint().head().size(), size + 1);
        check(crashed.path(), size + 1);
    }
}

/// File systems may lose renames that were not synced in any order: tiles beyond the checkpoint may be there in part.
#[test]
fn torn_tiles_beyond_the_checkpoint_are_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    grow(dir.path(), 5);
    let before = snapshot(dir.path());
    grow(dir.path(), 6);
    let after = snapshot(dir.path());
    for (name, bytes) in after.iter().filter(|(name, _)| !before.contains_key(*name)) {
        for length in (0..bytes.len()).step_by(19) {
            let mut files = before.clone();
            files.insert(name.clone(), bytes[..length].to_vec());
            restore(dir.path(), &files);
            grow(dir.path(), 6);
            check(dir.path(), 6);
        }
    }
}

/// After the acknowledgement nothing may be missing: damage is refused, never repaired by forgetting.
#[test]
fn damage_to_what_was_acknowledged_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    grow(dir.path(), 3);
    let files = snapshot(dir.path());
    for name in ["checkpoint", "tile/0/000.p/3", "tile/entries/000.p/3"] {
        let bytes = &files[Path::new(name)];
        for length in 0..bytes.len() {
            let mut cut = files.clone();
            cut.insert(name.into(), bytes[..length].to_vec());
            restore(dir.path(), &cut);
            assert!(TileLog::open(dir.path(), signer()).is_err(), "{name} cut at {length}");
            cut.get_mut(Path::new(name)).unwrap().clone_from(bytes);
            cut.get_mut(Path::new(name)).unwrap()[length] ^= 1;
            restore(dir.path(), &cut);
            assert!(TileLog::open(dir.path(), signer()).is_err(), "{name} changed at {length}");
        }
        let mut without = files.clone();
        without.remove(Path::new(name));
        restore(dir.path(), &without);
        assert!(TileLog::open(dir.path(), signer()).is_err(), "{name} missing");
    }
}

#[test]
fn full_verification_finds_a_change_that_opening_does_not_look_at() {
    let dir = tempfile::tempdir().unwrap();
    grow(dir.path(), 300);
    check(dir.path(), 300);
    let path = dir.path().join("tile/entries/000");
    let mut bytes = fs::read(&path).unwrap();
    bytes[3] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(TileLog::open(dir.path(), signer()).is_ok());
    let error = verify(&TileDir::new(dir.path()), signer().public(), |_, _| Ok(())).unwrap_err();
    assert!(matches!(error, VerifyError::Differs(_)), "{error}");
}

/// The unfinished tiles of upper levels stay as they are while entries come to a new bundle: they are looked at, too, and
/// an exported log has them.
#[test]
fn unfinished_tiles_of_upper_levels_are_verified_and_exported() {
    let dir = tempfile::tempdir().unwrap();
    grow(dir.path(), 300);
    let (log, key) = (TileDir::new(dir.path()), signer().public().clone());
    let out = tempfile::tempdir().unwrap();
    let checkpoint = SignedCheckpoint::verify(&log.checkpoint().unwrap(), &key).unwrap();
    tile_log::export(&log, &checkpoint, out.path()).unwrap();
    assert!(tile_log::export(&log, &checkpoint, out.path()).is_err(), "there is a log now");
    verify(&TileDir::new(out.path()), &key, |_, _| Ok(())).unwrap();
    for tile in ["tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/000", "tile/entries/001.p/44"] {
        assert_eq!(fs::read(out.path().join(tile)).unwrap(), fs::read(dir.path().join(tile)).unwrap(), "{tile}");
        let mut bytes = fs::read(dir.path().join(tile)).unwrap();
        bytes[3] ^= 1;
        fs::write(out.path().join(tile), bytes).unwrap();
        assert!(verify(&TileDir::new(out.path()), &key, |_, _| Ok(())).is_err(), "{tile}");
        fs::copy(dir.path().join(tile), out.path().join(tile)).unwrap();
    }
}

#[test]
fn one_sequencer_at_a_time_and_no_second_log() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(TileLog::open(dir.path(), signer()), Err(OpenError::NoLog(_))));
    let log = TileLog::create(dir.path(), signer()).unwrap();
    assert!(matches!(TileLog::open(dir.path(), signer()), Err(OpenError::Locked(_))));
    drop(log);
    assert!(matches!(TileLog::create(dir.path(), signer()), Err(OpenError::Exists(_))));
    let other = LogSigner::new("example.invalid/log", &[4; 32]).unwrap();
    assert!(matches!(TileLog::open(dir.path(), other), Err(OpenError::Checkpoint(_))));
}

#[test]
fn what_can_not_be_written_is_not_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = TileLog::create(dir.path(), signer()).unwrap();
    log.append(&[b"a"]).unwrap();
    // A directory in the place of the next tile's temporary file: no permission bits, so that root is stopped, too.
    let obstacle = dir.path().join("tile/0/000.p/2.tmp");
    fs::create_dir_all(&obstacle).unwrap();
    assert!(matches!(log.append(&[b"b"]), Err(AppendError::File(_))));
    assert_eq!(log.checkpoint().head().size(), 1);
    fs::remove_dir(&obstacle).unwrap();
    assert_eq!(log.append(&[b"c"]).unwrap()[0].index, 1);
    // In doubt about the checkpoint, the log wants to be reopened.
    let obstacle = dir.path().join("checkpoint.tmp");
    fs::create_dir_all(&obstacle).unwrap();
    assert!(matches!(log.append(&[b"d"]), Err(AppendError::File(_))));
    fs::remove_dir(&obstacle).unwrap();
    assert!(matches!(log.append(&[b"e"]), Err(AppendError::Poisoned)));
    drop(log);
    let mut log = TileLog::open(dir.path(), signer()).unwrap();
    assert_eq!(log.append(&[b"f"]).unwrap()[0].index, 2);
}

#[test]
fn proofs_verify_and_oversized_batches_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = TileLog::create(dir.path(), signer()).unwrap();
    let large = vec![0; 65_536];
    assert!(matches!(log.append(&[b"a", &large]), Err(AppendError::Edge(_))));
    let appended = log.append(&[b"a", b"b", b"c"]).unwrap();
    for entry in appended {
        let proof = log.proof(entry.index).unwrap();
        assert_eq!(proof.leaf, entry.leaf);
        assert_eq!(proof.verify(log.key()).unwrap().head().size(), 3);
        assert_eq!(proof.verify_path_only().unwrap().size(), 3);
        let mut other = proof.clone();
        other.index = (other.index + 1) % 3;
        assert!(other.verify(log.key()).is_err());
        let mut other = proof;
        other.tree_size += 1;
        assert!(other.verify(log.key()).is_err());
    }
    assert!(log.proof(3).is_err());
}
