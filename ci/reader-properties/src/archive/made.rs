// SPDX-License-Identifier: Apache-2.0
//! A store with something in every table, as an archive and as an export.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use key_release::owner_public_key;
use release::log::SignedCheckpoint;
use store::{AuditEntry, InitOptions, OwnerEntry, RefusalEntry, RefusalsEntry, Store};
use types::{Document as _, Sha256Digest};
use zeroize::Zeroizing;

use crate::seeds::{self, NOW};

/// One backup and one export of the same store.
pub(super) struct Made {
    pub(super) archive: Vec<u8>,
    /// All but the last two.
    pub(super) members: Vec<(String, Vec<u8>)>,
    pub(super) manifest: (String, Vec<u8>),
    pub(super) signature: (String, Vec<u8>),
    pub(super) checkpoint: SignedCheckpoint,
    /// Files of the log by their names.
    pub(super) export: BTreeMap<String, Vec<u8>>,
    /// The key-wrapping key, in a file that has no other name any more than that of being open.
    pub(super) kek: PathBuf,
    _kek: fs::File,
}

pub(super) fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(make)
}

fn make() -> Made {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (place, out) = (dir.path().join("store"), dir.path().join("export"));
    let options = InitOptions { audit_origin: "example.invalid/audit".to_owned(), kek: None };
    Store::init(place.as_path(), &options).expect("a new store");
    let store = Store::open(&place).expect("the store that was made");
    fill(&store);
    let mut archive = Vec::new();
    store.backup(&mut archive, |_, _| ()).expect("a backup");
    let checkpoint = store.export_audit(&out).expect("an export");
    let mut export = BTreeMap::new();
    files(&out, &out, &mut export);
    let mut members = members(&archive);
    let signature = members.pop().expect("the signature is the last member");
    let manifest = members.pop().expect("the manifest stands before it");
    let file = fs::File::open(place.join("kek")).expect("the key");
    let kek = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    Made { archive, members, manifest, signature, checkpoint, export, kek, _kek: file }
}

fn fill(store: &Store) {
    let model = seeds::model();
    store.import_key(&model, 1, &Zeroizing::new([1; 32])).expect("a key");
    store.set_policy("appraisal", b"{}").expect("a policy");
    store.revoke_release(&Sha256Digest::of(b"release")).expect("a revocation");
    store.register_owner(&model, &owner_public_key(&seeds::OWNER_KEY)).expect("an owner");
    let owner = OwnerEntry {
        schema: OwnerEntry::SCHEMA.to_owned(),
        unix: NOW,
        model,
        sequence: 1,
        command: Sha256Digest::of(b"command"),
    };
    let entries = [
        AuditEntry::KeyRelease(seeds::key_release_entry()),
        AuditEntry::Owner(owner),
        AuditEntry::Refusal(refusal()),
        AuditEntry::Refusals(refusals()),
        AuditEntry::KeyRelease(seeds::key_release_entry()),
    ];
    for entry in entries {
        store.append_audit(&entry).expect("an entry");
    }
}

/// A refusal, as the log has it.
pub(crate) fn refusal() -> RefusalEntry {
    RefusalEntry {
        schema: RefusalEntry::SCHEMA.to_owned(),
        unix: NOW,
        model: Some(seeds::model()),
        evidence: Some(Sha256Digest::of(b"evidence")),
        challenge: None,
        codes: vec!["register_mismatch".to_owned()],
    }
}

/// A sum of refusals.
pub(crate) fn refusals() -> RefusalsEntry {
    RefusalsEntry {
        schema: RefusalsEntry::SCHEMA.to_owned(),
        from: NOW,
        until: NOW + 60,
        refusals: 2,
        codes: [("tcb_out_of_date".to_owned(), 2)].into(),
    }
}

/// The members of a tar file that this project made.
fn members(mut tar: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut members = Vec::new();
    while let Some((header, rest)) = tar.split_at_checked(512).filter(|(header, _)| header[0] != 0) {
        let text = |range: core::ops::Range<usize>| {
            core::str::from_utf8(&header[range]).expect("text").trim_end_matches('\0').to_owned()
        };
        let size = usize::from_str_radix(&text(124..136), 8).expect("octal digits");
        members.push((text(0..100), rest[..size].to_vec()));
        tar = &rest[size.next_multiple_of(512)..];
    }
    members
}

fn files(root: &Path, dir: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for item in fs::read_dir(dir).expect("the export") {
        let path = item.expect("the export").path();
        if path.is_dir() {
            files(root, &path, found);
        } else if let Some(name) = path.strip_prefix(root).ok().and_then(Path::to_str) {
            found.insert(name.to_owned(), fs::read(&path).expect("a file of the export"));
        }
    }
}
