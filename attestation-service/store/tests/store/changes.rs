// SPDX-License-Identifier: Apache-2.0
//! What the operator changes: entered in the log, and not by a program that does not know the tables.

use store::{
    AuditEntry, AuditError, DatabaseError, OperatorAct, OperatorEntry, OwnerChange, OwnerError, PolicyError,
    RedeemError, Store,
};
use types::{Document as _, Hex32, Sha256Digest};

use super::place::{NOW, Place, key, model, release_entry};

/// The log's entries; those of changes by number, act and subject.
fn entries(store: &Store) -> Vec<Option<(u64, OperatorAct, String)>> {
    let mut all = Vec::new();
    let visit = |_, entry: &AuditEntry| match entry {
        AuditEntry::Operator(entry) => all.push(Some((entry.number, entry.act, entry.subject.clone()))),
        _ => all.push(None),
    };
    store.verify_audit_with(visit).unwrap();
    all
}

pub(crate) fn changes_of_the_operator_are_entered_before_what_follows_them(place: &Place) {
    let store = place.made();
    let beside = place.admin().unwrap();
    let (release, platform) = (Sha256Digest::of(b"release"), Sha256Digest::of(b"platform"));
    beside.revoke_release(&release).unwrap();
    beside.set_policy("appraisal", b"{}").unwrap();
    assert_eq!(store.append_audit(&release_entry(1)).unwrap().index, 2);
    let identity = model("m").identity().to_string();
    let mut expected = vec![
        Some((1, OperatorAct::ReleaseRevoked, release.to_string())),
        Some((2, OperatorAct::PolicySet, "appraisal".to_owned())),
        None,
    ];
    assert_eq!(entries(&store), expected);
    // A change that fails leaves nothing.
    beside.import_key(&model("m"), 1, &key(1)).unwrap();
    assert!(beside.import_key(&model("m"), 1, &key(2)).is_err());
    beside.register_owner(&model("m"), &Hex32::new([1; 32])).unwrap();
    assert!(beside.register_owner(&model("m"), &Hex32::new([2; 32])).is_err());
    // By itself; beside the service only where it can be, and never twice.
    beside.enter_changes().unwrap();
    assert_eq!(beside.checkpoint().unwrap().head().size(), if place.is_shared() { 5 } else { 3 });
    assert_eq!(beside.changes_waiting().unwrap(), if place.is_shared() { 0 } else { 2 });
    store.enter_changes().unwrap();
    store.enter_changes().unwrap();
    beside.enter_changes().unwrap();
    expected.push(Some((3, OperatorAct::KeyImported, format!("{identity}/1"))));
    expected.push(Some((4, OperatorAct::OwnersRegistered, identity.clone())));
    assert_eq!(entries(&store), expected);
    assert_eq!(beside.changes_waiting().unwrap(), 0);
    // Where no service runs.
    drop(store);
    beside.revoke_platform(&platform).unwrap();
    beside.revoke_model(&model("m")).unwrap();
    beside.enter_changes().unwrap();
    expected.push(Some((5, OperatorAct::PlatformRevoked, platform.to_string())));
    expected.push(Some((6, OperatorAct::ModelRevoked, identity)));
    assert_eq!(entries(&beside), expected);
    assert!(matches!(beside.append_audit(&release_entry(2)), Err(AuditError::NotSequencer)));
    drop(beside);
    let store = place.open();
    assert_eq!(store.append_audit(&release_entry(3)).unwrap().index, 7);
    // What an entry may not be.
    let good = OperatorEntry {
        schema: OperatorEntry::SCHEMA.into(),
        unix: NOW,
        number: 1,
        act: OperatorAct::PolicySet,
        subject: "appraisal".into(),
        content: None,
    };
    assert!(AuditEntry::Operator(good.clone()).to_bytes().is_ok());
    for bad in [
        OperatorEntry { number: 0, ..good.clone() },
        OperatorEntry { subject: String::new(), ..good.clone() },
        OperatorEntry { subject: "a b".into(), ..good.clone() },
        OperatorEntry { subject: "a".repeat(257), ..good.clone() },
        OperatorEntry { schema: "x".into(), ..good },
    ] {
        assert!(AuditEntry::Operator(bad).to_bytes().is_err());
    }
}

/// A key that was read before a change is no work of it; one that was read after it stands behind it in the log.
pub(crate) fn keys_are_released_behind_the_changes_that_were_seen(place: &Place) {
    let store = place.made();
    let beside = place.admin().unwrap();
    beside.import_key(&model("m"), 1, &key(1)).unwrap();
    let release = |number| release_entry(number).to_bytes().unwrap();
    let seen = || store.key(&model("m")).unwrap().unwrap().settled;
    let append = |number, settled| store.append_entry(&release(number), settled).unwrap().index;
    assert_eq!(append(1, seen()), 1, "behind the key's import");
    let settled = seen();
    beside.revoke_release(&Sha256Digest::of(b"release")).unwrap();
    // Nobody looks at what waits in a directory; in PostgreSQL that comes with the head.
    assert_eq!(append(2, settled), if place.is_shared() { 3 } else { 2 });
    assert_eq!(append(3, seen()), 4);
    assert_eq!(append(4, settled), 5);
    let expected = |entry: &Option<(u64, OperatorAct, String)>| entry.as_ref().map_or(0, |(number, ..)| *number);
    let order: Vec<_> = entries(&store).iter().map(expected).collect();
    assert_eq!(order, if place.is_shared() { [1, 0, 2, 0, 0, 0] } else { [1, 0, 0, 2, 0, 0] });
}

/// What owners command is counted, too: in the transaction that carries it out.
pub(crate) fn commands_of_owners_are_counted_as_changes(place: &Place) {
    let store = place.made();
    store.register_owner(&model("m"), &Hex32::new([1; 32])).unwrap();
    store.command_of_owner(&model("m"), 3, &OwnerChange::Policy(b"{}".to_vec())).unwrap();
    assert!(store.command_of_owner(&model("m"), 3, &OwnerChange::Revoke).is_err());
    store.command_of_owner(&model("m"), 4, &OwnerChange::Revoke).unwrap();
    store.enter_changes().unwrap();
    let identity = model("m").identity().to_string();
    let commanded = |number, sequence| Some((number, OperatorAct::OwnerCommanded, format!("{identity}/{sequence}")));
    let registered = Some((1, OperatorAct::OwnersRegistered, identity.clone()));
    assert_eq!(entries(&store), [registered, commanded(2, 3), commanded(3, 4)]);
}

/// More changes than are written at once stand before the key that any of them may have decided.
pub(crate) fn many_changes_stand_before_what_they_decided(place: &Place) {
    let store = place.made();
    for number in 0..300_u32 {
        store.revoke_platform(&Sha256Digest::of(&number.to_be_bytes())).unwrap();
    }
    let proof = store.append_audit(&release_entry(1)).unwrap();
    assert_eq!(proof.index, 300);
    proof.verify(store.audit_key()).unwrap();
    assert_eq!(store.changes_waiting().unwrap(), 0);
    let numbers: Vec<_> = entries(&store).into_iter().map(|entry| entry.map_or(0, |(number, ..)| number)).collect();
    assert_eq!(numbers, (1..=300).chain([0]).collect::<Vec<_>>());
    // As many as are written at once, and none behind them; by themselves.
    for number in 0..256_u32 {
        store.set_policy("appraisal", &number.to_be_bytes()).unwrap();
    }
    store.enter_changes().unwrap();
    assert_eq!((store.checkpoint().unwrap().head().size(), store.changes_waiting().unwrap()), (557, 0));
    drop(store);
    assert_eq!(place.open().append_audit(&release_entry(2)).unwrap().index, 557);
}

/// Somebody who can write the database gets nothing signed but entries of changes, under numbers that were counted and
/// not entered yet.
pub(crate) fn only_entries_of_counted_changes_are_taken_from_the_queue(place: &Place) {
    let store = place.made();
    store.revoke_release(&Sha256Digest::of(b"release")).unwrap();
    store.enter_changes().unwrap();
    let change = |number| {
        let entry = OperatorEntry {
            schema: OperatorEntry::SCHEMA.into(),
            unix: NOW,
            number,
            act: OperatorAct::PolicySet,
            subject: "appraisal".into(),
            content: None,
        };
        AuditEntry::Operator(entry).to_bytes().unwrap()
    };
    let many = 1 << 53;
    let beside = place.admin().unwrap();
    for (number, entry, expected) in [
        (2, release_entry(1).to_bytes().unwrap(), "entry of something else"),
        (2, change(3), "another number"),
        (2, change(2), "was not counted"),
        (many, change(many as u64 - 1), "another number"),
        (2, b"anything".to_vec(), "known schema"),
        (2, vec![b' '; 9_000], "8,192 bytes"),
        (2, vec![b' '; 60_000], "8,192 bytes"),
        // The number of an entry that stands in the log, and smaller ones.
        (1, change(1), "in the log already"),
        (1, release_entry(1).to_bytes().unwrap(), "in the log already"),
        (0, change(1), "in the log already"),
        (-7, change(1), "in the log already"),
    ] {
        let sql = format!("INSERT INTO operator_changes (number, entry) VALUES ({number}, ");
        place.tamper(&format!("{})", place.bytes_as(&sql, &entry)));
        let refused = |result: Result<(), AuditError>| {
            assert!(
                matches!(&result, Err(AuditError::Queued { number: n, rule }) if *n == number && rule.contains(expected)),
                "{number} {result:?}"
            );
        };
        refused(store.append_audit(&release_entry(2)).map(drop));
        refused(store.enter_changes());
        // Who waits for the service hears why it enters nothing.
        refused(beside.enter_changes());
        place.tamper(&format!("DELETE FROM operator_changes WHERE number = {number}"));
    }
    assert_eq!(entries(&store).len(), 1, "nothing of it was signed");
    beside.enter_changes().unwrap();
    assert_eq!(store.append_audit(&release_entry(3)).unwrap().index, 1);
    // A newer program's tables are not emptied by this one.
    let known = if place.is_shared() { "SELECT version FROM schema_version" } else { "PRAGMA user_version" };
    let known = place.read(known);
    store.revoke_release(&Sha256Digest::of(b"another")).unwrap();
    place.set_version(99);
    let newer = store.enter_changes();
    assert!(matches!(newer, Err(AuditError::Database(DatabaseError::Version { found: 99, .. }))), "{newer:?}");
    place.set_version(known);
    store.enter_changes().unwrap();
    assert_eq!(entries(&store).len(), 3);
}

/// A program that runs on while another one brings the tables up to date does not know what they mean.
pub(crate) fn tables_of_a_newer_program_stop_an_older_one(place: &Place) {
    let store = place.made();
    store.register_owner(&model("m"), &Hex32::new([1; 32])).unwrap();
    let token = |name: &[u8]| store.redeem(&Sha256Digest::of(name), NOW + 60, NOW).map(drop);
    token(b"first").unwrap();
    let known: i64 = match store.owner(model("m").identity()) {
        Ok(_) => {
            place.set_version(99);
            match store.owner(model("m").identity()) {
                Err(DatabaseError::Version { found: 99, known }) => known,
                other => panic!("{other:?}"),
            }
        }
        Err(error) => panic!("{error}"),
    };
    assert!(matches!(token(b"second"), Err(RedeemError::Batch(text)) if text.contains("99")));
    let newer = |error: &DatabaseError| matches!(error, DatabaseError::Version { found: 99, .. });
    assert!(matches!(store.set_policy("p", b"{}"), Err(PolicyError::Database(error)) if newer(&error)));
    assert!(matches!(store.revoke_release(&Sha256Digest::of(b"r")), Err(error) if newer(&error)));
    let command = store.command_of_owner(&model("m"), 1, &OwnerChange::Policy(b"{}".to_vec()));
    assert!(matches!(command, Err(OwnerError::Database(error)) if newer(&error)));
    place.set_version(known);
    assert_eq!(store.policies().unwrap(), Vec::<String>::new());
    assert!(!store.is_release_revoked(&Sha256Digest::of(b"r")).unwrap());
    token(b"second").unwrap();
    store.command_of_owner(&model("m"), 1, &OwnerChange::Policy(b"{}".to_vec())).unwrap();
}
