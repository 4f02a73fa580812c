// SPDX-License-Identifier: Apache-2.0
//! Many callers at once: everybody's own result, and marks that move with changes alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use release::log::leaf_hash;
use store::{AuditEntry, RedeemError, RefusalEntry, RefusalsEntry};
use types::{Document as _, Hex32, Sha256Digest};

use super::place::{NOW, Place, key, model};

/// Each of 16 × 25 entries is in the log once, at the index of its proof, and the proof is of this very entry.
pub(crate) fn entries_that_come_together_have_proofs_of_their_own(place: &Place) {
    let store = place.made();
    let seen = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for caller in 0..16 {
            let (store, seen) = (&store, &seen);
            scope.spawn(move || {
                for round in 0..25 {
                    let entry = entry(caller * 100 + round);
                    let proof = store.append_audit(&entry).unwrap();
                    assert_eq!(proof.leaf, leaf_hash(&entry.to_bytes().unwrap()));
                    proof.verify(store.audit_key()).unwrap();
                    assert!(seen.lock().unwrap().insert(proof.index), "an index twice");
                }
            });
        }
    });
    assert_eq!(seen.into_inner().unwrap(), (0..400).collect());
    drop(store);
    let store = place.open();
    assert_eq!(store.verify_audit().unwrap().refusals, 400);
}

/// In one batch a good redemption, a repeated and an expired one: each has its own answer.
pub(crate) fn redemptions_that_come_together_stand_or_fall_alone(place: &Place) {
    let store = place.made();
    store.prune_redeemed(NOW).unwrap();
    let answers = Mutex::new(BTreeMap::<&str, u32>::new());
    std::thread::scope(|scope| {
        for caller in 0..24_u32 {
            let (store, answers) = (&store, &answers);
            scope.spawn(move || {
                // Pairs of callers have the same token; every third pair's has ended.
                let expired = (caller / 2) % 3 == 0;
                let token = Sha256Digest::of(&(caller / 2).to_be_bytes());
                let expires = if expired { NOW - 1 } else { NOW + 60 };
                let answer = match store.redeem(&token, expires, NOW - 2) {
                    Ok(_) => "redeemed",
                    Err(RedeemError::AlreadyRedeemed) => "again",
                    Err(RedeemError::Expired) => "expired",
                    Err(other) => panic!("{other}"),
                };
                *answers.lock().unwrap().entry(answer).or_default() += 1;
            });
        }
    });
    assert_eq!(answers.into_inner().unwrap(), [("again", 8), ("expired", 8), ("redeemed", 8)].into());
}

pub(crate) fn marks_move_with_changes_and_not_with_redemptions(place: &Place) {
    let store = place.made();
    let other = place.admin().unwrap();
    let mut number = 0_u32;
    let mut mark = || {
        number += 1;
        store.redeem(&Sha256Digest::of(&number.to_be_bytes()), NOW + 60, NOW).unwrap()
    };
    let first = mark();
    store.append_audit(&entry(1)).unwrap();
    store.prune_redeemed(NOW - 1).unwrap();
    assert_eq!(mark(), first, "what every request does is no change");
    let mut last = first;
    let changes: [&dyn Fn(); 8] = [
        &|| store.set_policy("p", b"1").unwrap(),
        &|| store.revoke_release(&Sha256Digest::of(b"r")).unwrap(),
        &|| store.revoke_platform(&Sha256Digest::of(b"p")).unwrap(),
        &|| other.set_policy("p", b"2").unwrap(),
        &|| other.revoke_release(&Sha256Digest::of(b"other")).unwrap(),
        &|| other.revoke_platform(&Sha256Digest::of(b"other")).unwrap(),
        &|| other.register_owner(&model("m"), &Hex32::new([1; 32])).unwrap(),
        &|| other.import_key(&model("m"), 1, &key(1)).unwrap(),
    ];
    for (index, change) in changes.iter().enumerate() {
        change();
        let moved = mark();
        assert_ne!(moved, last, "change {index}");
        assert_eq!(mark(), moved);
        last = moved;
    }
}

/// A failover to a standby that lacked the newest commit: the next change has the number of the one that was lost. Its
/// mark is another nevertheless, so that no replica takes the one for the other; a state that came back has its own.
pub(crate) fn a_change_after_a_failover_is_not_taken_for_a_lost_one(place: &Place) {
    let store = place.made();
    let mut count = 0_u32;
    let mut mark = || {
        count += 1;
        store.redeem(&Sha256Digest::of(&count.to_be_bytes()), NOW + 60, NOW).unwrap()
    };
    store.set_policy("p", b"old").unwrap();
    let kept = mark();
    let row = |column: &str| place.read(&format!("SELECT {column} FROM changes"));
    let (number, written) = (row("number"), row("mark"));
    store.set_policy("p", b"lost").unwrap();
    let lost = mark();
    let lost_number = row("number");
    // What the standby had.
    place.tamper(&format!("UPDATE changes SET number = {number}, mark = {written}"));
    place.tamper(&place.bytes_as("UPDATE policies SET document = ", b"old"));
    assert_eq!(mark(), kept);
    store.set_policy("p", b"new").unwrap();
    assert_eq!(row("number"), lost_number, "the case is the one that is meant");
    assert_ne!(mark(), lost);
    assert_eq!(store.policy("p").unwrap().as_deref(), Some(b"new".as_slice()));
}

pub(crate) fn sums_of_refusals_are_entries(place: &Place) {
    let store = place.made();
    let good = RefusalsEntry {
        schema: RefusalsEntry::SCHEMA.into(),
        from: NOW,
        until: NOW + 60,
        refusals: 1000,
        codes: [("register_mismatch".to_owned(), 1000), ("tcb_out_of_date".to_owned(), 3)].into(),
    };
    store.append_audit(&AuditEntry::Refusals(good.clone())).unwrap();
    store.append_audit(&entry(1)).unwrap();
    assert_eq!(store.verify_audit().unwrap().refusals, 1001);
    for bad in [
        RefusalsEntry { refusals: 0, ..good.clone() },
        RefusalsEntry { until: NOW - 1, ..good.clone() },
        RefusalsEntry { codes: BTreeMap::new(), ..good.clone() },
        RefusalsEntry { codes: [("x".to_owned(), 0)].into(), ..good.clone() },
        RefusalsEntry { codes: [("Bad Code".to_owned(), 1)].into(), ..good.clone() },
        RefusalsEntry { schema: RefusalEntry::SCHEMA.into(), ..good },
    ] {
        assert!(store.append_audit(&AuditEntry::Refusals(bad)).is_err());
    }
}
fn entry(number: u64) -> AuditEntry {
    AuditEntry::Refusal(RefusalEntry {
        schema: RefusalEntry::SCHEMA.into(),
        unix: NOW + number,
        model: None,
        evidence: None,
        challenge: None,
        codes: vec!["register_mismatch".into()],
    })
}
