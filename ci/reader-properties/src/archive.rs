// SPDX-License-Identifier: Apache-2.0
//! Archives of backups, and exports of the audit log. Their keys are random and digests stand over everything, so that
//! invented bytes get nowhere: one of each is made at the start of a run, and the input says what is changed in it.

mod made;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use release::log::{TileError, TilePath, Tiles};
use serde_json::Value;
use store::{AuditEntry, RestoreOptions, Store};
use types::Sha256Digest;

use self::made::{Made, made};
pub(crate) use self::made::{refusal, refusals};

/// `r` and changes of an archive's bytes; `m` of its members, whose digests are then written anew; `x` of the files of an
/// export. A change is five bytes: kind, which, place (little endian), value.
pub fn archive(bytes: &[u8]) -> bool {
    match bytes.split_first() {
        Some((b'r', changes)) => raw(changes),
        Some((b'm', changes)) => members(changes),
        Some((b'x', changes)) => export(changes),
        _ => false,
    }
}

/// An archive has one spelling, and nothing else is accepted.
fn raw(changes: &[u8]) -> bool {
    let mut archive = made().archive.clone();
    apply(changes, |_, change| change.to(&mut archive));
    let accepted = is_accepted(&archive);
    assert_eq!(accepted, archive == made().archive, "an archive that was changed, or the one that was made");
    accepted
}

/// Who writes the digests anew, and has no key of the log, changes nothing.
fn members(changes: &[u8]) -> bool {
    let mut members = made().members.clone();
    let count = members.len();
    apply(changes, |which, change| change.to(&mut members[which % count].1));
    let accepted = is_accepted(&assembled(&members));
    assert_eq!(accepted, members == made().members, "members that were changed, or those that were made");
    accepted
}

/// Every file that the verification reads is what was exported.
fn export(changes: &[u8]) -> bool {
    let made = made();
    let names: Vec<_> = made.export.keys().collect();
    let mut files = made.export.clone();
    apply(changes, |which, change| {
        if let Some(file) = names.get(which % names.len()).and_then(|name| files.get_mut(*name)) {
            change.to(file);
        }
    });
    let changed = Files { files, read: RefCell::default() };
    let known = |_: u64, entry: &[u8]| AuditEntry::parse(entry).map(drop).map_err(|error| error.to_string());
    if tile_log::verify_tiles(&changed, &made.checkpoint, known).is_err() {
        return false;
    }
    for name in changed.read.borrow().iter() {
        assert!(changed.files.get(name) == made.export.get(name), "{name} was changed, and is accepted");
    }
    assert!(!changed.read.borrow().is_empty(), "a log was verified without being read");
    true
}

/// Files of an export, and which of them were read.
struct Files {
    files: BTreeMap<String, Vec<u8>>,
    read: RefCell<BTreeSet<String>>,
}

impl Tiles for Files {
    fn read(&self, path: &TilePath) -> Result<Vec<u8>, TileError> {
        let name = path.to_string();
        let found = self.files.get(&name).cloned().ok_or(TileError::Missing(*path))?;
        self.read.borrow_mut().insert(name);
        Ok(found)
    }
}

#[derive(Clone, Copy)]
struct Change {
    kind: u8,
    place: usize,
    value: u8,
}

impl Change {
    fn to(self, bytes: &mut Vec<u8>) {
        let Self { kind, place, value } = self;
        let place = place % bytes.len().max(1);
        match kind % 5 {
            0 => {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte = value;
                }
            }
            1 => bytes.insert(place, value),
            2 if !bytes.is_empty() => drop(bytes.remove(place)),
            3 => bytes.truncate(place),
            _ => bytes.push(value),
        }
    }
}

fn apply(changes: &[u8], mut change: impl FnMut(usize, Change)) {
    for [kind, which, low, high, value] in changes.as_chunks::<5>().0.iter().take(MAX_CHANGES).copied() {
        change(which.into(), Change { kind, place: u16::from_le_bytes([low, high]).into(), value });
    }
}

fn is_accepted(archive: &[u8]) -> bool {
    let Made { kek, checkpoint, .. } = made();
    let options = RestoreOptions { kek: Some(kek.clone().into()), ..RestoreOptions::default() };
    let Ok(found) = Store::check_backup(archive, &options, |_, _| ()) else { return false };
    assert_eq!(found.head(), checkpoint.head(), "another log");
    let known = RestoreOptions { known_checkpoint: Some(checkpoint.note().to_owned()), ..options };
    assert!(Store::check_backup(archive, &known, |_, _| ()).is_ok(), "the same log is no older one");
    true
}

/// A tar file of these members, a manifest that fits them, and the signature of the one that was made.
fn assembled(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let Made { manifest, signature, .. } = made();
    let mut fitting: Value = serde_json::from_slice(&manifest.1).expect("the manifest is JSON");
    fitting["members"] = members
        .iter()
        .map(|(name, bytes)| {
            serde_json::json!({ "name": name, "bytes": bytes.len(), "sha256": Sha256Digest::of(bytes).to_string() })
        })
        .collect();
    let fitting = (manifest.0.clone(), fitting.to_string().into_bytes());
    // In its own spelling, where nothing was changed.
    let manifest = if members == made().members { manifest } else { &fitting };
    let mut tar = Vec::new();
    for (name, bytes) in members.iter().chain([manifest, signature]) {
        tar.extend(header(name, bytes.len()));
        tar.extend(bytes);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// POSIX.1-1988 ustar, "Header Block".
fn header(name: &str, size: usize) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000600");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, &format!("{:011o}", 0));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:07o}\0").as_bytes());
    header
}

const MAX_CHANGES: usize = 24;
