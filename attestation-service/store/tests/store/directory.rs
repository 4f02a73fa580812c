// SPDX-License-Identifier: Apache-2.0
//! Stores in directories: their files, set back, damaged, of older versions.

use std::fs;
use std::path::Path;

use store::{AuditError, InitError, InitOptions, OpenError, OpenOptions, OwnerChange, Store};
use types::Hex32;

use super::place::{admin, init, key, model, release_entry, tamper};

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

/// The database alone restored from an old copy, beside a log that nobody touched: what the operator revoked since then
/// is missed.
#[test]
fn a_database_that_was_set_back_is_refused() {
    let (dir, old) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    init(dir.path());
    Store::open(dir.path()).unwrap().append_audit(&release_entry(0)).unwrap();
    copy(dir.path(), old.path());
    let store = Store::open(dir.path()).unwrap();
    store.append_audit(&release_entry(1)).unwrap();
    drop(store);
    let set_back = || {
        fs::copy(old.path().join("store.sqlite"), dir.path().join("store.sqlite")).unwrap();
        for side in ["store.sqlite-wal", "store.sqlite-shm"] {
            let _ = fs::remove_file(dir.path().join(side));
        }
    };
    // As after a power failure: nothing is missed.
    set_back();
    let store = Store::open(dir.path()).unwrap();
    store.revoke_release(&types::Sha256Digest::of(b"release")).unwrap();
    store.append_audit(&release_entry(2)).unwrap();
    drop(store);
    assert!(Store::open(dir.path()).is_ok());
    set_back();
    assert!(matches!(Store::open(dir.path()), Err(OpenError::ChangesLost { known: 0, found: 1 })));
    assert!(matches!(admin(dir.path()), Err(OpenError::ChangesLost { known: 0, found: 1 })));
    // The same where the owner revoked.
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = Store::open(dir.path()).unwrap();
    store.register_owner(&model("m"), &Hex32::new([1; 32])).unwrap();
    store.append_audit(&release_entry(0)).unwrap();
    drop(store);
    let old = tempfile::tempdir().unwrap();
    copy(dir.path(), old.path());
    let store = Store::open(dir.path()).unwrap();
    store.command_of_owner(&model("m"), 1, &OwnerChange::Revoke).unwrap();
    store.enter_changes().unwrap();
    drop(store);
    fs::copy(old.path().join("store.sqlite"), dir.path().join("store.sqlite")).unwrap();
    for side in ["store.sqlite-wal", "store.sqlite-shm"] {
        let _ = fs::remove_file(dir.path().join(side));
    }
    assert!(matches!(Store::open(dir.path()), Err(OpenError::ChangesLost { known: 1, found: 2 })));
    // Far behind, whatever was changed.
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = Store::open(dir.path()).unwrap();
    std::thread::scope(|scope| {
        for caller in 0..103 {
            let store = &store;
            scope.spawn(move || (0..10).for_each(|n| _ = store.append_audit(&release_entry(caller * 10 + n)).unwrap()));
        }
    });
    drop(store);
    assert!(Store::open(dir.path()).is_ok());
    tamper(dir.path(), "DELETE FROM audit_head");
    assert!(matches!(Store::open(dir.path()), Err(OpenError::DatabaseSetBack { recorded: 0, found: 1030 })));
}

/// A change whose entry stands in the log is not entered again, however often the database fails to record that, and over
/// a restart.
#[test]
fn a_change_is_entered_once_though_its_record_fails() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = Store::open(dir.path()).unwrap();
    let database = rusqlite::Connection::open(dir.path().join("store.sqlite")).unwrap();
    let broken = "CREATE TRIGGER broken BEFORE DELETE ON operator_changes BEGIN SELECT RAISE(ABORT, 'broken'); END";
    database.execute_batch(broken).unwrap();
    store.revoke_release(&types::Sha256Digest::of(b"release")).unwrap();
    let size = |store: &Store| store.checkpoint().unwrap().head().size();
    for _ in 0..3 {
        assert!(matches!(store.enter_changes(), Err(AuditError::Database(_))));
        assert_eq!((size(&store), store.changes_waiting().unwrap()), (1, 1));
    }
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert!(matches!(store.enter_changes(), Err(AuditError::Database(_))));
    // The next one is entered, and what could not be recorded is made up for.
    store.revoke_release(&types::Sha256Digest::of(b"another")).unwrap();
    assert!(store.enter_changes().is_err());
    assert_eq!(size(&store), 2);
    database.execute_batch("DROP TRIGGER broken").unwrap();
    store.enter_changes().unwrap();
    assert_eq!((size(&store), store.changes_waiting().unwrap()), (2, 0));
    drop(store);
    assert_eq!(Store::open(dir.path()).unwrap().append_audit(&release_entry(0)).unwrap().index, 2);
}

/// The same where the write itself ended in doubt, with the entry in the log that is found: here in one that another
/// process wrote, as after a checkpoint whose sync failed behind its rename.
#[test]
fn a_change_is_entered_once_though_its_write_ends_in_doubt() {
    let revoked = |store: &Store, name: &[u8]| store.revoke_release(&types::Sha256Digest::of(name)).unwrap();
    for lost in [false, true] {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        init(dir.path());
        let beside = admin(dir.path()).unwrap();
        beside.set_policy("appraisal", b"{}").unwrap();
        beside.enter_changes().unwrap();
        revoked(&beside, b"release");
        drop(beside);
        copy(dir.path(), other.path());
        let elsewhere = Store::open(other.path()).unwrap();
        elsewhere.append_audit(&release_entry(0)).unwrap();
        if lost {
            revoked(&elsewhere, b"another");
            elsewhere.enter_changes().unwrap();
        }
        drop(elsewhere);

        let store = Store::open(dir.path()).unwrap();
        let obstacle = dir.path().join("audit/checkpoint.tmp");
        fs::create_dir_all(&obstacle).unwrap();
        assert!(matches!(store.append_audit(&release_entry(0)), Err(AuditError::Append(_))));
        fs::remove_dir(&obstacle).unwrap();
        copy(&other.path().join("audit"), &dir.path().join("audit"));
        if lost {
            // And not a change that the database does not have.
            let refused = store.append_audit(&release_entry(1));
            let found = |error: &OpenError| matches!(error, OpenError::ChangesLost { known: 2, found: 3 });
            assert!(matches!(&refused, Err(AuditError::Reopen(error)) if found(error)), "{refused:?}");
            continue;
        }
        assert_eq!(store.changes_waiting().unwrap(), 1);
        store.enter_changes().unwrap();
        assert_eq!((store.checkpoint().unwrap().head().size(), store.changes_waiting().unwrap()), (3, 0));
        assert_eq!(store.append_audit(&release_entry(1)).unwrap().index, 3);
    }
}

/// A command that was begun before the service entered a change, and ended, sees what stands in the log.
#[test]
fn a_command_beside_enters_nothing_that_an_ended_service_entered() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = Store::open(dir.path()).unwrap();
    let beside = admin(dir.path()).unwrap();
    let database = rusqlite::Connection::open(dir.path().join("store.sqlite")).unwrap();
    let broken = "CREATE TRIGGER broken BEFORE DELETE ON operator_changes BEGIN SELECT RAISE(ABORT, 'broken'); END";
    database.execute_batch(broken).unwrap();
    beside.revoke_release(&types::Sha256Digest::of(b"release")).unwrap();
    assert!(matches!(store.enter_changes(), Err(AuditError::Database(_))));
    drop(store);
    database.execute_batch("DROP TRIGGER broken").unwrap();
    beside.revoke_release(&types::Sha256Digest::of(b"another")).unwrap();
    beside.enter_changes().unwrap();
    assert_eq!((beside.checkpoint().unwrap().head().size(), beside.changes_waiting().unwrap()), (2, 0));
}

/// A command that enters what the operator changed holds the log for a moment: a service that starts then is not refused.
#[test]
fn a_start_waits_for_whoever_holds_the_log() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let first = Store::open(dir.path()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(100));
            drop(first);
        });
        Store::open(dir.path()).unwrap().append_audit(&release_entry(0)).unwrap();
    });
    // Not for ever: two services on one directory are refused.
    let _held = Store::open(dir.path()).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(OpenError::Audit(tile_log::OpenError::Locked(_)))));
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

/// A store of each older version is brought up to date when it is opened; one of a later version is not touched.
#[test]
fn stores_of_older_versions_are_migrated() {
    let seventh = "DROP TABLE tenants;".to_owned();
    let sixth = format!("{seventh} DROP TABLE operator_changes;");
    // An owner of the time when each had one key.
    let before = model("before");
    let fifth = format!("{sixth} ALTER TABLE changes DROP COLUMN mark;");
    let fourth = format!(
        "{fifth} DROP TABLE successors; DROP TABLE owner_keys; ALTER TABLE owners DROP COLUMN threshold;
        INSERT INTO owners (model, key, sequence) VALUES ('{}', x'{}', 5);",
        before.identity(),
        "07".repeat(32)
    );
    let third = "DROP TABLE changes; ALTER TABLE secrets DROP COLUMN kek; ALTER TABLE model_keys DROP COLUMN kek;";
    let third = format!("{fourth} {third}");
    for (version, undo) in [
        (6, seventh),
        (5, sixth),
        (4, fifth),
        (3, fourth),
        (2, third.clone()),
        (1, format!("{third} DROP TABLE owners;")),
    ] {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path());
        Store::open(dir.path()).unwrap().import_key(&model("m"), 1, &key(1)).unwrap();
        let change = |sql: &str| {
            rusqlite::Connection::open(dir.path().join("store.sqlite")).unwrap().execute_batch(sql).unwrap();
        };
        change(&format!("{undo} PRAGMA user_version = {version};"));
        let store = admin(dir.path()).unwrap();
        store.register_owner(&model("m"), &Hex32::new([1; 32])).unwrap();
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        assert!(store.owner(model("m").identity()).unwrap().is_some());
        let owner = store.owner(before.identity()).unwrap().map(|owner| (owner.keys, owner.threshold, owner.sequence));
        assert_eq!(owner, (2..4).contains(&version).then(|| (vec![Hex32::new([7; 32])], 1, 5)));
        assert_eq!(*store.key(&model("m")).unwrap().unwrap().key, [1; 32]);
        drop(store);
        change("PRAGMA user_version = 99;");
        assert!(matches!(admin(dir.path()), Err(OpenError::Database(_))));
    }
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
