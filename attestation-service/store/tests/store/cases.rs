// SPDX-License-Identifier: Apache-2.0
//! What every store promises, wherever it is.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Barrier;

use release::log::{TilePath, WitnessSigner, cosign};
use store::{
    AuditError, KekError, KeyStoreError, OpenError, OwnerChange, OwnerError, PolicyError, RedeemError, RefusalEntry,
    Successor, WrapError,
};
use types::{Document as _, Hex32, KeyReleaseEntry, ModelId, Sha256Digest};
use zeroize::Zeroizing;

use super::place::{NOW, Place, key, model, refusal_entry, release_entry};
use store::AuditEntry;

pub(crate) fn keys_come_back_by_their_whole_name_and_newest_version(place: &Place) {
    let store = place.made();
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
    assert!(matches!(store.import_key(&model("m"), 99, &key(9)), Err(KeyStoreError::Revoked)));
}

pub(crate) fn no_key_lies_in_the_files_in_clear(place: &Place) {
    let store = place.made();
    store.import_key(&model("m"), 1, &key(0xa7)).unwrap();
    store.put_secret("tls", &[0xa7; 32]).unwrap();
    for bytes in place.contents() {
        assert!(!bytes.windows(32).any(|window| window == [0xa7; 32]));
    }
    assert_eq!(store.secret("tls").unwrap().unwrap().as_slice(), [0xa7; 32]);
    assert!(store.secret("audit-log-key").unwrap().is_none(), "the store's own secrets are out of reach");
}

pub(crate) fn a_wrong_or_exposed_key_wrapping_key_opens_nothing(place: &Place) {
    place.init();
    let other = Place::directory();
    other.init();
    let kek = place.kek();
    let own = fs::read(&kek).unwrap();
    fs::copy(other.kek(), &kek).unwrap();
    assert!(matches!(place.try_open(), Err(OpenError::WrongKek)));
    fs::write(&kek, own).unwrap();
    assert!(place.try_open().is_ok());
    fs::set_permissions(&kek, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(place.try_open(), Err(OpenError::Kek(KekError::Mode { mode: 0o644, .. }))));
}

pub(crate) fn rows_that_were_moved_or_changed_do_not_open(place: &Place) {
    let store = place.made();
    let zeros = if place.is_shared() { "decode(repeat('00', 60), 'hex')" } else { "zeroblob(60)" };
    let nothing = if place.is_shared() { "''::bytea" } else { "x''" };
    for (number, change) in [
        "version = 7",
        "wrapped = (SELECT wrapped FROM model_keys WHERE model LIKE 'b@%')",
        &format!("wrapped = {zeros}"),
        &format!("wrapped = {nothing}"),
    ]
    .into_iter()
    .enumerate()
    {
        let moved = model(&format!("a{number}"));
        store.import_key(&moved, 1, &key(1)).unwrap();
        if number == 0 {
            store.import_key(&model("b"), 1, &key(2)).unwrap();
        }
        place.tamper(&format!("UPDATE model_keys SET {change} WHERE model LIKE 'a{number}@%'"));
        assert!(matches!(store.key(&moved), Err(KeyStoreError::Wrap(WrapError::Open))), "{change}");
        assert_eq!(*store.key(&model("b")).unwrap().unwrap().key, [2; 32]);
    }
}

/// Attack 50.
pub(crate) fn of_racing_redemptions_one_wins(place: &Place) {
    place.init();
    // Two handles, as two processes would have.
    let stores = [place.open(), place.admin().unwrap()];
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
pub(crate) fn a_challenge_is_redeemed_once_for_ever(place: &Place) {
    place.init();
    let token = Sha256Digest::of(b"token");
    let store = place.open();
    assert!(matches!(store.redeem(&token, NOW - 1, NOW), Err(RedeemError::Expired)));
    store.redeem(&token, NOW + 60, NOW).unwrap();
    drop(store);
    let store = place.open();
    assert!(matches!(store.redeem(&token, NOW + 60, NOW), Err(RedeemError::AlreadyRedeemed)));
    assert_eq!(store.prune_redeemed(NOW + 60).unwrap(), 0);
    assert_eq!(store.prune_redeemed(NOW + 61).unwrap(), 1);
    assert!(matches!(store.redeem(&token, NOW + 60, NOW), Err(RedeemError::Expired)));
    store.redeem(&token, NOW + 61, NOW).unwrap();
    assert_eq!(store.prune_redeemed(NOW).unwrap(), 0, "a clock that steps back moves no mark back");
    assert!(matches!(store.redeem(&token, NOW + 60, NOW), Err(RedeemError::Expired)));
}

pub(crate) fn audit_entries_come_with_proofs_and_survive(place: &Place) {
    let store = place.made();
    let first = store.append_audit(&release_entry(0)).unwrap();
    assert_eq!((first.index, first.tree_size), (0, 1));
    assert_eq!(first.leaf, release::log::leaf_hash(&release_entry(0).to_bytes().unwrap()));
    let second = store.append_audit(&refusal_entry(&["challenge_replayed"])).unwrap();
    assert_eq!(second.verify(store.audit_key()).unwrap().head().size(), 2);
    drop(store);
    let store = place.open();
    assert_eq!(store.audit_proof(0).unwrap().verify(store.audit_key()).unwrap().head().size(), 2);
    let summary = store.verify_audit().unwrap();
    assert_eq!((summary.key_releases, summary.refusals), (1, 1));
    let path = TilePath::entries(0, 2).unwrap();
    assert_eq!(path.split_entries(&store.tile(&path).unwrap()).unwrap()[0], release_entry(0).to_bytes().unwrap());

    // Administration beside the service reads, and does not append.
    let beside = place.admin().unwrap();
    assert_eq!(beside.checkpoint().unwrap(), store.checkpoint().unwrap());
    assert!(matches!(beside.append_audit(&release_entry(1)), Err(AuditError::NotSequencer)));
    match place.try_open() {
        // Of services on an embedded database there is one.
        Err(OpenError::Audit(tile_log::OpenError::Locked(_))) => assert!(!place.is_shared()),
        opened => assert!(place.is_shared() && opened.is_ok()),
    }
}

/// Across the end of a tile, when partial tiles are dropped.
pub(crate) fn administration_reads_while_the_service_appends(place: &Place) {
    let store = place.made();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (0..260).for_each(|number| _ = store.append_audit(&release_entry(number)).unwrap());
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        while !done.load(std::sync::atomic::Ordering::Acquire) {
            let beside = place.admin().unwrap();
            assert_eq!(beside.verify_audit().unwrap().refusals, 0);
        }
    });
    assert_eq!(place.admin().unwrap().verify_audit().unwrap().key_releases, 260);
}

pub(crate) fn entries_of_another_form_are_refused(place: &Place) {
    let store = place.made();
    let refused = |entry: &AuditEntry| matches!(store.append_audit(entry), Err(AuditError::Entry(_)));
    assert!(refused(&refusal_entry(&[])));
    assert!(refused(&refusal_entry(&["Not a code"])));
    let AuditEntry::KeyRelease(good) = release_entry(0) else { panic!() };
    assert!(refused(&AuditEntry::KeyRelease(KeyReleaseEntry { key_version: 0, ..good.clone() })));
    assert!(refused(&AuditEntry::KeyRelease(KeyReleaseEntry { schema: RefusalEntry::SCHEMA.into(), ..good })));
    assert_eq!(store.checkpoint().unwrap().head().size(), 0);
}

pub(crate) fn cosignatures_join_the_current_checkpoint_only(place: &Place) {
    let store = place.made();
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

pub(crate) fn revocations_and_policies_last(place: &Place) {
    let store = place.made();
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
    let store = place.open();
    assert!(store.is_release_revoked(&digest).unwrap());
    assert!(store.is_platform_revoked(&platform).unwrap() && !store.is_platform_revoked(&digest).unwrap());
    store.import_key(&model("one"), 1, &Zeroizing::new([7; 32])).unwrap();
    let key_for = |platform| store.key_for(&model("one"), platform);
    assert_eq!(key_for(&digest).unwrap().unwrap().key, Zeroizing::new([7; 32]));
    assert!(matches!(key_for(&platform), Err(KeyStoreError::PlatformRevoked)));
    store.revoke_model(&model("one")).unwrap();
    assert!(matches!(key_for(&platform), Err(KeyStoreError::PlatformRevoked)));
    assert!(matches!(key_for(&digest), Err(KeyStoreError::Revoked)));
    assert_eq!(store.policy("default").unwrap().unwrap(), b"{\"a\":1}");
    assert_eq!(store.policies().unwrap(), ["default"]);
}

pub(crate) fn owners_command_in_order_and_for_good(place: &Place) {
    let store = place.made();
    let (one, two) = (model("one"), model("two"));
    let policy = |text: &str| OwnerChange::Policy(text.as_bytes().to_vec());
    assert!(matches!(store.command_of_owner(&one, 1, &policy("a")), Err(OwnerError::Unknown)));
    store.register_owner(&one, &Hex32::new([1; 32])).unwrap();
    let renamed = ModelId::new("other", "r1", *one.identity()).unwrap();
    assert!(matches!(store.register_owner(&renamed, &Hex32::new([2; 32])), Err(OwnerError::Exists)));
    let owner = store.owner(one.identity()).unwrap().unwrap();
    assert_eq!((owner.keys, owner.threshold), (vec![Hex32::new([1; 32])], 1));
    assert_eq!(store.owner(two.identity()).unwrap(), None);
    store.command_of_owner(&one, 5, &policy("a")).unwrap();
    for sequence in [0, 4, 5] {
        let error = store.command_of_owner(&one, sequence, &OwnerChange::Revoke).unwrap_err();
        assert!(matches!(error, OwnerError::Sequence { known: 5, found } if found == sequence));
    }
    assert!(!store.is_model_revoked(&one).unwrap());
    let [first, second] = [Sha256Digest::of(b"1"), Sha256Digest::of(b"2")];
    let admitted = Successor { predecessor: first, successor: second };
    store.command_of_owner(&one, 6, &OwnerChange::Successor(admitted)).unwrap();
    let key = |version| OwnerChange::Key { version, key: Zeroizing::new([3; 32]) };
    store.command_of_owner(&one, 7, &key(1)).unwrap();
    assert_eq!(*store.key(&one).unwrap().unwrap().key, [3; 32]);
    assert_eq!(store.successors().unwrap(), [(*one.identity(), admitted)]);
    // A command that fails changes nothing, its sequence included.
    let again = store.command_of_owner(&one, 8, &key(1)).unwrap_err();
    assert!(matches!(again, OwnerError::Key(KeyStoreError::Exists { version: 1, .. })), "{again}");
    assert!(matches!(store.command_of_owner(&one, 8, &key(0)), Err(OwnerError::Key(KeyStoreError::Version))));
    assert_eq!(store.owner(one.identity()).unwrap().unwrap().sequence, 7);
    store.command_of_owner(&one, 8, &policy("b")).unwrap();
    assert_eq!(store.successors().unwrap(), [], "a policy says everything");
    assert_eq!(store.owner_policies().unwrap(), [(*one.identity(), b"b".to_vec())]);
    // Tenants are those of the model by whatever label, and go with the key.
    store.import_key(&renamed, 1, &Zeroizing::new([4; 32])).unwrap();
    let tenants = |model: &ModelId| store.key(model).unwrap().unwrap().tenants;
    let command = |model: &ModelId, sequence, document: Option<&[u8]>| {
        store.command_of_owner(model, sequence, &OwnerChange::Tenants(document.map(<[u8]>::to_vec))).unwrap();
    };
    assert_eq!((tenants(&one), tenants(&renamed)), (None, None));
    command(&renamed, 9, Some(b"a"));
    assert_eq!((tenants(&one), tenants(&renamed)), (Some(b"a".to_vec()), Some(b"a".to_vec())));
    command(&one, 10, Some(b"b"));
    assert_eq!(tenants(&one), Some(b"b".to_vec()));
    command(&one, 11, None);
    command(&one, 12, None);
    assert_eq!(tenants(&one), None);
    store.command_of_owner(&renamed, 13, &OwnerChange::Revoke).unwrap();
    assert!(store.is_model_revoked(&one).unwrap() && !store.is_model_revoked(&two).unwrap());
    drop(store);
    let store = place.open();
    assert_eq!(store.owner(one.identity()).unwrap().unwrap().sequence, 13);
    // Several keys, sorted; what does not fit is refused whole.
    let keys = |bytes: &[u8]| bytes.iter().map(|byte| Hex32::new([*byte; 32])).collect::<Vec<_>>();
    let nine: Vec<_> = (1..=9).collect();
    for (bytes, threshold) in [([].as_slice(), 0), (&[], 1), (&[1], 0), (&[1], 2), (&[1, 1], 1), (&nine, 2)] {
        let refused = store.register_owners(&two, &keys(bytes), threshold);
        assert!(matches!(refused, Err(OwnerError::Keys)), "{bytes:?} {threshold}");
    }
    assert_eq!(store.owner(two.identity()).unwrap(), None);
    store.register_owners(&two, &keys(&[3, 1, 2]), 2).unwrap();
    let owner = store.owner(two.identity()).unwrap().unwrap();
    assert_eq!((owner.keys, owner.threshold, owner.sequence), (keys(&[1, 2, 3]), 2, 0));
}
