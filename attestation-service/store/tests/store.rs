// SPDX-License-Identifier: Apache-2.0
//! The store against wrong keys, tampering, races, rollbacks and restarts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::fs;
use std::path::Path;
use std::sync::Barrier;

use release::log::{TilePath, WitnessSigner, cosign};
use store::{
    AuditEntry, AuditError, InitError, InitOptions, KekError, KeyStoreError, OpenError, OpenOptions, OwnerChange,
    OwnerError, PolicyError, RedeemError, RefusalEntry, Store, WrapError,
};
use types::{Blake3Digest, Document as _, Hex32, KeyReleaseEntry, ModelId, Sha256Digest};
use zeroize::Zeroizing;

const NOW: u64 = 1_750_000_000;

fn init(dir: &Path) {
    Store::init(dir, &InitOptions { audit_origin: "example.invalid/audit".into(), kek: None }).unwrap();
}

fn model(name: &str) -> ModelId {
    ModelId::new(name, "r1", Blake3Digest::of(name.as_bytes())).unwrap()
}

fn key(byte: u8) -> Zeroizing<[u8; 32]> {
    Zeroizing::new([byte; 32])
}

fn release_entry(number: u64) -> AuditEntry {
    AuditEntry::KeyRelease(KeyReleaseEntry {
        schema: KeyReleaseEntry::SCHEMA.into(),
        unix: NOW + number,
        model: model("m"),
        key_version: 1,
        release: Sha256Digest::of(b"release"),
        evidence: Sha256Digest::of(b"evidence"),
        challenge: Sha256Digest::of(&number.to_be_bytes()),
        platform: Sha256Digest::of(b"platform"),
        decision: types::audit::Authorised::Authorised,
    })
}

fn refusal_entry(codes: &[&str]) -> AuditEntry {
    AuditEntry::Refusal(RefusalEntry {
        schema: RefusalEntry::SCHEMA.into(),
        unix: NOW,
        model: None,
        evidence: None,
        challenge: None,
        codes: codes.iter().map(|code| (*code).to_owned()).collect(),
    })
}

/// Runs SQL as somebody who has the database file and not the key-wrapping key.
fn tamper(dir: &Path, sql: &str) {
    assert!(rusqlite::Connection::open(dir.join("store.sqlite")).unwrap().execute(sql, []).unwrap() > 0, "{sql}");
}

fn admin(dir: &Path) -> Result<Store, OpenError> {
    Store::open_with(dir, &OpenOptions { sequencer: false, ..OpenOptions::default() })
}

#[test]
fn keys_come_back_by_their_whole_name_and_newest_version() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = Store::open(dir.path()).unwrap();
    assert!(store.key(&model("m")).unwrap().is_none());
    store.import_key(&model("m"), 2, &key(2)).unwrap();
    store.import_key(&model("m"), 10, &key(10)).unwrap();
    store.import_key(&model("m"), 1, &key(1)).unwrap();
    let newest = store.key(&model("m")).unwrap().unwrap();
    assert_eq!((newest.version, *newest.key), (10, [10; 32]));
    let renamed = ModelId::new("other", "r1", *model("m").identity()).unwrap();
    assert!(store.key(&renamed).unwrap().is_none());
    assert_eq!(store.keys().unwrap().iter().map(|k| k.version).collect::<Vec<_>>(), [1, 2, 10]);
    assert!(matches!(store.import_key(&model("m"), 10, &key(3)), Err(KeyStoreError::Exists { version: 10, .. })));
    assert!(matches!(store.import_key(&model("m"), 0, &key(3)), Err(KeyStoreError::Version)));
    assert_eq!(*store.key(&model("m")).unwrap().unwrap().key, [10; 32]);
    store.revoke_model(&renamed).unwrap();
    assert!(matches!(store.key(&model("m")), Err(KeyStoreError::Revoked)));
}

#[test]
fn no_key_lies_in_the_files_in_clear() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = Store::open(dir.path()).unwrap();
    store.import_key(&model("m"), 1, &key(0xa7)).unwrap();
    store.put_secret("tls", &[0xa7; 32]).unwrap();
    for file in fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().path()).filter(|p| p.is_file()) {
        let bytes = fs::read(&file).unwrap();
        assert!(!bytes.windows(32).any(|window| window == [0xa7; 32]), "{}", file.display());
    }
    assert_eq!(store.secret("tls").unwrap().unwrap().as_slice(), [0xa7; 32]);
    assert!(store.secret("audit-log-key").unwrap().is_none(), "the store's own secrets are out of reach");
}

#[test]
fn a_wrong_or_exposed_key_wrapping_key_opens_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    init(dir.path());
    init(other.path());
    let kek = dir.path().join("kek");
    let own = fs::read(&kek).unwrap();
    fs::copy(other.path().join("kek"), &kek).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(OpenError::WrongKek)));
    fs::write(&kek, own).unwrap();
    assert!(Store::open(dir.path()).is_ok());
    fs::set_permissions(&kek, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(OpenError::Kek(KekError::Mode { mode: 0o644, .. }))));
}

#[test]
fn rows_that_were_moved_or_changed_do_not_open() {
    for sql in [
        "UPDATE model_keys SET version = 7 WHERE model LIKE 'a@%'",
        "UPDATE model_keys SET wrapped = (SELECT wrapped FROM model_keys WHERE model LIKE 'b@%') WHERE model LIKE 'a@%'",
        "UPDATE model_keys SET wrapped = zeroblob(60) WHERE model LIKE 'a@%'",
        "UPDATE model_keys SET wrapped = x'' WHERE model LIKE 'a@%'",
    ] {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path());
        let store = Store::open(dir.path()).unwrap();
        store.import_key(&model("a"), 1, &key(1)).unwrap();
        store.import_key(&model("b"), 1, &key(2)).unwrap();
        tamper(dir.path(), sql);
        assert!(matches!(store.key(&model("a")), Err(KeyStoreError::Wrap(WrapError::Open))), "{sql}");
        assert_eq!(*store.key(&model("b")).unwrap().unwrap().key, [2; 32]);
    }
}

/// Attack 50.
#[test]
fn of_racing_redemptions_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    // Two handles, as two processes would have.
    let stores = [Store::open(dir.path()).unwrap(), admin(dir.path()).unwrap()];
    for round in 0..20u8 {
        let token = Sha256Digest::of(&[round]);
        let barrier = Barrier::new(8);
        let won: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|n| {
                    let (store, barrier) = (&stores[n % 2], &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        match store.redeem(&token, NOW + 60, NOW) {
                            Ok(_) => 1,
                            Err(RedeemError::AlreadyRedeemed) => 0,
                            Err(other) => panic!("{other}"),
                        }
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(won, 1, "round {round}");
    }
}

/// Attack 49, across a restart, a pruning and a clock that steps back.
#[test]
fn a_challenge_is_redeemed_once_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let token = Sha256Digest::of(b"token");
    let store = Store::open(dir.path()).unwrap();
    assert!(matches!(store.redeem(&token, NOW - 1, NOW), Err(RedeemError::Expired)));
    store.redeem(&token, NOW + 60, NOW).unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert!(matches!(store.redeem(&token, NOW + 60, NOW), Err(RedeemError::AlreadyRedeemed)));
    assert_eq!(store.prune_redeemed(NOW + 60).unwrap(), 0);
    assert_eq!(store.prune_redeemed(NOW + 61).unwrap(), 1);
    assert!(matches!(store.redeem(&token, NOW + 60, NOW), Err(RedeemError::Expired)));
    store.redeem(&token, NOW + 61, NOW).unwrap();
    assert_eq!(store.prune_redeemed(NOW).unwrap(), 0, "a clock that steps back moves no mark back");
    assert!(matches!(store.redeem(&token, NOW + 60, NOW), Err(RedeemError::Expired)));
}

#[test]
fn audit_entries_come_with_proofs_and_survive() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = Store::open(dir.path()).unwrap();
    let first = store.append_audit(&release_entry(0)).unwrap();
    assert_eq!((first.index, first.tree_size), (0, 1));
    assert_eq!(first.leaf, release::log::leaf_hash(&release_entry(0).to_bytes().unwrap()));
    let second = store.append_audit(&refusal_entry(&["challenge_replayed"])).unwrap();
    assert_eq!(second.verify(store.audit_key()).unwrap().head().size(), 2);
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.audit_proof(0).unwrap().verify(store.audit_key()).unwrap().head().size(), 2);
    let summary = store.verify_audit().unwrap();
    assert_eq!((summary.key_releases, summary.refusals), (1, 1));
    let path = TilePath::entries(0, 2).unwrap();
    assert_eq!(path.split_entries(&store.tile(&path).unwrap()).unwrap()[0], release_entry(0).to_bytes().unwrap());

    // Administration beside the service reads, and does not append.
    let beside = admin(dir.path()).unwrap();
    assert_eq!(beside.checkpoint().unwrap(), store.checkpoint().unwrap());
    assert!(matches!(beside.append_audit(&release_entry(1)), Err(AuditError::NotSequencer)));
    assert!(matches!(Store::open(dir.path()), Err(OpenError::Audit(tile_log::OpenError::Locked(_)))));
}

/// Across the end of a tile, when partial tiles are dropped.
#[test]
fn administration_reads_while_the_service_appends() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = Store::open(dir.path()).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (0..260).for_each(|number| _ = store.append_audit(&release_entry(number)).unwrap());
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        while !done.load(std::sync::atomic::Ordering::Acquire) {
            let beside = admin(dir.path()).unwrap();
            assert_eq!(beside.verify_audit().unwrap().refusals, 0);
        }
    });
    assert_eq!(admin(dir.path()).unwrap().verify_audit().unwrap().key_releases, 260);
}

#[test]
fn entries_of_another_form_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = Store::open(dir.path()).unwrap();
    let refused = |entry: &AuditEntry| matches!(store.append_audit(entry), Err(AuditError::Entry(_)));
    assert!(refused(&refusal_entry(&[])));
    assert!(refused(&refusal_entry(&["Not a code"])));
    let AuditEntry::KeyRelease(good) = release_entry(0) else { panic!() };
    assert!(refused(&AuditEntry::KeyRelease(KeyReleaseEntry { key_version: 0, ..good.clone() })));
    assert!(refused(&AuditEntry::KeyRelease(KeyReleaseEntry { schema: RefusalEntry::SCHEMA.into(), ..good })));
    assert_eq!(store.checkpoint().unwrap().head().size(), 0);
}

/// Attack 55: an old copy of the log, of the database, or another log in its place.
#[test]
fn a_restored_or_replaced_audit_log_is_refused() {
    let (dir, old) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    init(dir.path());
    let store = Store::open(dir.path()).unwrap();
    store.append_audit(&release_entry(0)).unwrap();
    copy(&dir.path().join("audit"), &old.path().join("audit"));
    store.append_audit(&release_entry(1)).unwrap();
    let known = store.checkpoint().unwrap();
    drop(store);

    let newest = tempfile::tempdir().unwrap();
    copy(dir.path(), newest.path());
    fs::remove_dir_all(dir.path().join("audit")).unwrap();
    copy(&old.path().join("audit"), &dir.path().join("audit"));
    assert!(matches!(Store::open(dir.path()), Err(OpenError::RolledBack { known: 2, found: 1 })));

    // The same size with another history, signed by the same key: the database remembers the root.
    tamper(dir.path(), "DELETE FROM audit_head");
    Store::open(dir.path()).unwrap().append_audit(&release_entry(7)).unwrap();
    copy(&newest.path().join("store.sqlite"), &dir.path().join("store.sqlite"));
    for side in ["store.sqlite-wal", "store.sqlite-shm"] {
        let _ = fs::remove_file(dir.path().join(side));
    }
    assert!(matches!(Store::open(dir.path()), Err(OpenError::RolledBack { known: 2, found: 2 })));

    // Log and database both restored: only a checkpoint kept elsewhere shows it.
    tamper(dir.path(), "DELETE FROM audit_head");
    assert!(Store::open(dir.path()).is_ok());
    let options = OpenOptions { known_checkpoint: Some(known.note().to_owned()), ..OpenOptions::default() };
    assert!(matches!(Store::open_with(dir.path(), &options), Err(OpenError::RolledBack { known: 2, found: 2 })));
    assert!(Store::open_with(newest.path(), &options).is_ok());
}

/// A crash after the log's commit and before the database's record: the log is ahead, and that is no rollback.
#[test]
fn a_log_ahead_of_the_database_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = Store::open(dir.path()).unwrap();
    store.append_audit(&release_entry(0)).unwrap();
    let root = store.checkpoint().unwrap().head().root().to_string();
    store.append_audit(&release_entry(1)).unwrap();
    drop(store);
    tamper(dir.path(), &format!("UPDATE audit_head SET size = 1, root = x'{root}'"));
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.append_audit(&release_entry(2)).unwrap().index, 2);
    assert_eq!(store.verify_audit().unwrap().key_releases, 3);
}

/// Attack 53: what can't be written is not authorised.
#[test]
fn without_an_entry_on_disk_there_is_no_proof() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = Store::open(dir.path()).unwrap();
    let obstacle = dir.path().join("audit/tile/entries/000.p/1.tmp");
    fs::create_dir_all(&obstacle).unwrap();
    assert!(matches!(store.append_audit(&release_entry(0)), Err(AuditError::Append(_))));
    fs::remove_dir(&obstacle).unwrap();
    assert_eq!(store.append_audit(&release_entry(0)).unwrap().index, 0);
}

/// A checkpoint that can't be replaced leaves in doubt what is on disk: the log is opened again, without a restart.
#[test]
fn a_log_whose_checkpoint_could_not_be_written_goes_on_later() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = Store::open(dir.path()).unwrap();
    let obstacle = dir.path().join("audit/checkpoint.tmp");
    for round in 0..3 {
        fs::create_dir_all(&obstacle).unwrap();
        for _ in 0..2 {
            assert!(matches!(store.append_audit(&release_entry(round)), Err(AuditError::Append(_))));
        }
        assert_eq!(store.checkpoint().unwrap().head().size(), round);
        fs::remove_dir(&obstacle).unwrap();
        assert_eq!(store.append_audit(&release_entry(round)).unwrap().index, round);
    }
    assert_eq!(store.verify_audit().unwrap().key_releases, 3);
    // What is there when it is opened again must extend what the database knows.
    let old = fs::read(dir.path().join("audit/checkpoint")).unwrap();
    store.append_audit(&release_entry(3)).unwrap();
    fs::create_dir_all(&obstacle).unwrap();
    assert!(store.append_audit(&release_entry(4)).is_err());
    fs::remove_dir(&obstacle).unwrap();
    fs::write(dir.path().join("audit/checkpoint"), old).unwrap();
    assert!(matches!(store.append_audit(&release_entry(4)), Err(AuditError::Reopen(_))));
}

#[test]
fn cosignatures_join_the_current_checkpoint_only() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = Store::open(dir.path()).unwrap();
    store.append_audit(&release_entry(0)).unwrap();
    let witness = WitnessSigner::new("witness", &[5; 32]).unwrap();
    let note = store.checkpoint().unwrap().note().to_owned();
    let (cosigned, _) = cosign(&witness, None, &note, store.audit_key(), &[], NOW).unwrap();
    store.set_cosigned(cosigned.clone()).unwrap();
    let proof = store.audit_proof(0).unwrap();
    let checkpoint = proof.verify(store.audit_key()).unwrap();
    assert!(checkpoint.verify_witnesses(&[witness.public().clone()], 1).is_ok());
    store.append_audit(&release_entry(1)).unwrap();
    assert!(store.set_cosigned(cosigned).is_err());
}

#[test]
fn revocations_and_policies_last() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = Store::open(dir.path()).unwrap();
    let digest = Sha256Digest::of(b"statement");
    assert!(!store.is_release_revoked(&digest).unwrap());
    store.revoke_release(&digest).unwrap();
    store.revoke_release(&digest).unwrap();
    let platform = Sha256Digest::of(b"platform");
    store.revoke_platform(&platform).unwrap();
    store.set_policy("default", b"{}").unwrap();
    store.set_policy("default", b"{\"a\":1}").unwrap();
    assert!(matches!(store.set_policy("../x", b""), Err(PolicyError::Name)));
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert!(store.is_release_revoked(&digest).unwrap());
    assert!(store.is_platform_revoked(&platform).unwrap() && !store.is_platform_revoked(&digest).unwrap());
    assert_eq!(store.policy("default").unwrap().unwrap(), b"{\"a\":1}");
    assert_eq!(store.policies().unwrap(), ["default"]);
}

#[test]
fn owners_command_in_order_and_for_good() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = Store::open(dir.path()).unwrap();
    let (one, two) = (model("one"), model("two"));
    let policy = |text: &str| OwnerChange::Policy(text.as_bytes().to_vec());
    assert!(matches!(store.command_of_owner(&one, 1, &policy("a")), Err(OwnerError::Unknown)));
    store.register_owner(&one, &Hex32::new([1; 32])).unwrap();
    let renamed = ModelId::new("other", "r1", *one.identity()).unwrap();
    assert!(matches!(store.register_owner(&renamed, &Hex32::new([2; 32])), Err(OwnerError::Exists)));
    assert_eq!(store.owner(one.identity()).unwrap().unwrap().key, Hex32::new([1; 32]));
    assert_eq!(store.owner(two.identity()).unwrap(), None);
    store.command_of_owner(&one, 5, &policy("a")).unwrap();
    for sequence in [0, 4, 5] {
        let error = store.command_of_owner(&one, sequence, &OwnerChange::Revoke).unwrap_err();
        assert!(matches!(error, OwnerError::Sequence { known: 5, found } if found == sequence));
    }
    assert!(!store.is_model_revoked(&one).unwrap());
    store.command_of_owner(&one, 6, &policy("b")).unwrap();
    assert_eq!(store.owner_policies().unwrap(), [(*one.identity(), b"b".to_vec())]);
    store.command_of_owner(&renamed, 7, &OwnerChange::Revoke).unwrap();
    assert!(store.is_model_revoked(&one).unwrap() && !store.is_model_revoked(&two).unwrap());
    drop(store);
    assert_eq!(Store::open(dir.path()).unwrap().owner(one.identity()).unwrap().unwrap().sequence, 7);
}

/// A store of the version before owners is brought up to date when it is opened; one of a later version is not touched.
#[test]
fn stores_of_version_1_are_migrated() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    Store::open(dir.path()).unwrap().import_key(&model("m"), 1, &key(1)).unwrap();
    let change =
        |sql: &str| rusqlite::Connection::open(dir.path().join("store.sqlite")).unwrap().execute_batch(sql).unwrap();
    change("DROP TABLE owners; PRAGMA user_version = 1;");
    let store = admin(dir.path()).unwrap();
    store.register_owner(&model("m"), &Hex32::new([1; 32])).unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert!(store.owner(model("m").identity()).unwrap().is_some());
    assert_eq!(*store.key(&model("m")).unwrap().unwrap().key, [1; 32]);
    drop(store);
    change("PRAGMA user_version = 3;");
    assert!(matches!(admin(dir.path()), Err(OpenError::Database(_))));
}

#[test]
fn a_store_is_made_once_and_found_only_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Store::open(dir.path()), Err(OpenError::Kek(_))));
    init(dir.path());
    let again = Store::init(dir.path(), &InitOptions { audit_origin: "x".into(), kek: None });
    assert!(matches!(again, Err(InitError::Exists(_))));
    let bad = Store::init(&dir.path().join("b"), &InitOptions { audit_origin: "a b".into(), kek: None });
    assert!(matches!(bad, Err(InitError::Origin(_))));
    fs::remove_file(dir.path().join("store.sqlite")).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(OpenError::Database(_))));
}

fn copy(from: &Path, to: &Path) {
    if from.is_file() {
        fs::copy(from, to).unwrap();
        return;
    }
    fs::create_dir_all(to).unwrap();
    for item in fs::read_dir(from).unwrap().map(Result::unwrap) {
        copy(&item.path(), &to.join(item.file_name()));
    }
}
