// SPDX-License-Identifier: Apache-2.0
//! Backups: whole, of one spelling, and restored into an empty place of either kind.

use std::sync::atomic::{AtomicBool, Ordering};

use store::{
    ArchiveError, InitOptions, KekSource, Location, OpenOptions, OwnerChange, RedeemError, RestoreError,
    RestoreOptions, Store, Successor,
};
use types::{Hex32, Sha256Digest};

use super::place::{NOW, Place, key, model, refusal_entry, release_entry};

fn filled(place: &Place<'_>) -> Store {
    let store = place.made();
    store.import_key(&model("m"), 1, &key(1)).unwrap();
    store.import_key(&model("m"), 2, &key(2)).unwrap();
    store.put_secret("tls", &[7; 32]).unwrap();
    store.set_policy("appraisal", b"{\"a\":1}").unwrap();
    store.revoke_platform(&Sha256Digest::of(b"platform")).unwrap();
    store.revoke_model(&model("gone")).unwrap();
    store.register_owner(&model("m"), &Hex32::new([1; 32])).unwrap();
    store.register_owners(&model("n"), &[Hex32::new([3; 32]), Hex32::new([2; 32])], 2).unwrap();
    let successor = Successor { predecessor: Sha256Digest::of(b"old"), successor: Sha256Digest::of(b"new") };
    store.command_of_owner(&model("n"), 1, &OwnerChange::Successor(successor)).unwrap();
    store.command_of_owner(&model("m"), 5, &OwnerChange::Policy(b"{}".to_vec())).unwrap();
    std::thread::scope(|scope| {
        for caller in 0..8 {
            let store = &store;
            scope.spawn(move || (0..40).for_each(|n| _ = store.append_audit(&release_entry(caller * 40 + n)).unwrap()));
        }
    });
    store.append_audit(&refusal_entry(&["challenge_replayed"])).unwrap();
    store.redeem(&Sha256Digest::of(b"token"), NOW + 60, NOW).unwrap();
    store
}

fn archive(store: &Store) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.backup(&mut bytes, |_, _| ()).unwrap();
    bytes
}

/// Restored as if its challenges lasted a minute, and opened.
fn restored(location: &Location, kek: &KekSource, bytes: &[u8]) -> Store {
    let options = RestoreOptions { kek: Some(kek.clone()), void_until: NOW + 60, ..RestoreOptions::default() };
    let checkpoint = Store::restore(location, bytes, &options, |_, _| ()).unwrap();
    let store = Store::open_with(location, &OpenOptions { kek: Some(kek.clone()), ..OpenOptions::default() }).unwrap();
    assert_eq!(store.checkpoint().unwrap(), checkpoint);
    store
}

fn same(one: &Store, other: &Store) {
    assert_eq!(one.keys().unwrap(), other.keys().unwrap());
    assert_eq!(*other.key(&model("m")).unwrap().unwrap().key, [2; 32]);
    assert_eq!(other.secret("tls").unwrap().unwrap().as_slice(), [7; 32]);
    assert_eq!(other.policy("appraisal").unwrap().unwrap(), b"{\"a\":1}");
    assert!(other.is_platform_revoked(&Sha256Digest::of(b"platform")).unwrap());
    assert!(other.is_model_revoked(&model("gone")).unwrap());
    assert_eq!(other.owner(model("m").identity()).unwrap().unwrap().sequence, 5);
    assert_eq!(one.owner_policies().unwrap(), other.owner_policies().unwrap());
    assert_eq!(one.owner(model("n").identity()).unwrap(), other.owner(model("n").identity()).unwrap());
    assert_eq!((other.successors().unwrap().len(), one.successors().unwrap()), (1, other.successors().unwrap()));
    assert_eq!(one.checkpoint().unwrap(), other.checkpoint().unwrap());
    let (mine, theirs) = (one.verify_audit().unwrap(), other.verify_audit().unwrap());
    assert_eq!(mine, theirs);
    assert_eq!((theirs.key_releases, theirs.refusals), (320, 1));
    for path in ["tile/0/000", "tile/0/001.p/65", "tile/1/000.p/1", "tile/entries/001.p/65"] {
        assert_eq!(one.tile(&path.parse().unwrap()).unwrap(), other.tile(&path.parse().unwrap()).unwrap(), "{path}");
    }
}

pub(crate) fn backups_are_whole_and_restored_in_a_directory(place: &Place<'_>) {
    let store = filled(place);
    let bytes = archive(&store);
    assert_eq!(bytes, archive(&store), "one state, one spelling");
    assert!(!bytes.windows(32).any(|window| [[1; 32], [2; 32], [7; 32]].iter().any(|key| window == key)));
    let kek = KekSource::File(place.kek());
    let dir = tempfile::tempdir().unwrap();
    let location = Location::from(&dir.path().join("new"));
    let other = restored(&location, &kek, &bytes);
    same(&store, &other);
    // Everything that was made before is void, whether it was redeemed or not; what comes is not.
    for token in [b"token".as_slice(), b"open"] {
        assert!(matches!(other.redeem(&Sha256Digest::of(token), NOW + 60, NOW), Err(RedeemError::Expired)));
    }
    other.redeem(&Sha256Digest::of(b"new"), NOW + 61, NOW).unwrap();
    assert_eq!(other.append_audit(&release_entry(1)).unwrap().index, 321);
    drop(other);
    // Only into an empty place, and what is there stays.
    let again = Store::restore(
        &location,
        bytes.as_slice(),
        &RestoreOptions { kek: Some(kek), ..Default::default() },
        |_, _| (),
    );
    assert!(matches!(again, Err(RestoreError::Exists(_))));
    let options = OpenOptions { kek: Some(KekSource::File(place.kek())), ..OpenOptions::default() };
    assert_eq!(Store::open_with(&location, &options).unwrap().checkpoint().unwrap().head().size(), 322);
}

/// From a directory into a database server, and back.
pub(crate) fn backups_move_stores(server: &test_postgres::Server) {
    let (from, to, back) = (Place::directory(), Place::postgres(server), tempfile::tempdir().unwrap());
    let store = filled(&from);
    let kek = KekSource::File(from.kek());
    let moved = restored(&to.location(), &kek, &archive(&store));
    same(&store, &moved);
    assert_eq!(moved.append_audit(&release_entry(5)).unwrap().index, 321);
    let again = Store::restore(
        to.location(),
        archive(&store).as_slice(),
        &RestoreOptions { kek: Some(kek.clone()), ..Default::default() },
        |_, _| (),
    );
    assert!(matches!(again, Err(RestoreError::NotEmpty)));
    let home = restored(&Location::from(&back.path().join("store")), &kek, &archive(&moved));
    assert_eq!(home.checkpoint().unwrap(), moved.checkpoint().unwrap());
    assert_eq!(home.verify_audit().unwrap().key_releases, 321);
    // One that is refused leaves an empty database.
    let bytes = archive(&moved);
    let empty = Place::postgres(server);
    let options = RestoreOptions { kek: Some(kek.clone()), ..Default::default() };
    let cut = Store::restore(empty.location(), &bytes[..bytes.len() - 1], &options, |_, _| ());
    assert!(matches!(cut, Err(RestoreError::Archive(_))));
    restored(&empty.location(), &kek, &bytes);
}

/// Attack 55, and archives that somebody made up.
pub(crate) fn archives_that_are_old_or_changed_are_refused(place: &Place<'_>) {
    let store = filled(place);
    let bytes = archive(&store);
    let newest = store.append_audit(&release_entry(1)).unwrap().checkpoint;
    let dir = tempfile::tempdir().unwrap();
    let location = Location::from(&dir.path().join("new"));
    let good = RestoreOptions { kek: Some(KekSource::File(place.kek())), ..RestoreOptions::default() };
    let restore = |bytes: &[u8], options: &RestoreOptions| Store::restore(&location, bytes, options, |_, _| ());

    let known = RestoreOptions { known_checkpoint: Some(newest.clone()), ..good.clone() };
    assert!(matches!(restore(&bytes, &known), Err(RestoreError::RolledBack { known: 322, found: 321 })));
    // Another history of the same log's key.
    let twin = tempfile::tempdir().unwrap();
    let twin_location = Location::from(&twin.path().join("twin"));
    let twin = restored(&twin_location, &KekSource::File(place.kek()), &bytes);
    let fork = twin.append_audit(&release_entry(2)).unwrap().checkpoint;
    let forked = RestoreOptions { known_checkpoint: Some(fork), ..good.clone() };
    assert!(matches!(restore(&archive(&store), &forked), Err(RestoreError::RolledBack { known: 322, found: 322 })));
    let nonsense = RestoreOptions { known_checkpoint: Some("nonsense".into()), ..good.clone() };
    assert!(matches!(restore(&bytes, &nonsense), Err(RestoreError::KnownCheckpoint(_))));

    let stranger = Place::directory();
    stranger.init();
    let wrong = RestoreOptions { kek: Some(KekSource::File(stranger.kek())), ..good.clone() };
    assert!(matches!(restore(&bytes, &wrong), Err(RestoreError::Row { .. })));

    for at in (0..bytes.len()).step_by(bytes.len() / 16) {
        let mut changed = bytes.clone();
        changed[at] ^= 4;
        assert!(restore(&changed, &good).is_err(), "byte {at}");
        assert!(restore(&bytes[..at], &good).is_err(), "{at} bytes");
    }
    let trailing = [bytes.as_slice(), b"x"].concat();
    assert!(matches!(restore(&trailing, &good), Err(RestoreError::Archive(ArchiveError::Trailing))));
    // After all that the place is empty: the good one is restored.
    restored(&location, &KekSource::File(place.kek()), &bytes);
}

pub(crate) fn backups_are_made_while_the_service_appends(place: &Place<'_>) {
    let store = place.made();
    let beside = place.admin().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                store.append_audit(&release_entry(number)).unwrap();
                store.set_policy("p", number.to_string().as_bytes()).unwrap();
                if stop.load(Ordering::SeqCst) {
                    return;
                }
            }
        });
        let mut last = 0;
        for _ in 0..3 {
            while store.checkpoint().unwrap().head().size() < last + 60 {
                std::thread::yield_now();
            }
            let bytes = archive(&beside);
            let dir = tempfile::tempdir().unwrap();
            let other = restored(&Location::from(&dir.path().join("s")), &KekSource::File(place.kek()), &bytes);
            last = other.verify_audit().unwrap().key_releases;
            // What the tables show was entered before.
            let shown: u64 = String::from_utf8(other.policy("p").unwrap().unwrap()).unwrap().parse().unwrap();
            assert!(shown < last, "{shown} of {last}");
        }
        stop.store(true, Ordering::SeqCst);
    });
}

/// Ended on the way, a change of the key-wrapping key leaves rows of both, and goes on.
pub(crate) fn everything_is_wrapped_anew_by_another_key(place: &Place<'_>) {
    let store = place.made();
    for version in 1..20 {
        store.import_key(&model("m"), version, &key(u8::try_from(version).unwrap())).unwrap();
    }
    store.put_secret("tls", &[7; 32]).unwrap();
    let other = Place::directory();
    Store::init(other.location(), &InitOptions { audit_origin: "x".into(), kek: Some(other.kek().into()) }).unwrap();
    let (old, new) = (KekSource::File(place.kek()), KekSource::File(other.kek()));
    let open = |first: &KekSource, others: &[&KekSource]| {
        let others = others.iter().map(|kek| (*kek).clone()).collect();
        let options =
            OpenOptions { kek: Some(first.clone()), other_keks: others, sequencer: false, ..OpenOptions::default() };
        Store::open_with(place.location(), &options)
    };
    let both = open(&new, &[&old]).unwrap();
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        both.rewrap(|done| assert!(done.changed < 10, "ended on the way"))
    }));
    assert!(ended.is_err());
    assert_eq!(both.keks_in_use().unwrap().len(), 2);
    // Whoever has both opens everything, in whatever order; who has one does not.
    for store in [open(&new, &[&old]).unwrap(), open(&old, &[&new]).unwrap()] {
        assert_eq!(*store.key(&model("m")).unwrap().unwrap().key, [19; 32]);
        assert_eq!(store.secret("tls").unwrap().unwrap().as_slice(), [7; 32]);
    }
    assert!(open(&new, &[]).is_err() || open(&old, &[]).is_err());
    let done = open(&new, &[&old]).unwrap().rewrap(|_| ()).unwrap();
    assert!(done.changed > 0 && done.kept >= 9, "{done:?}");
    assert_eq!(both.keks_in_use().unwrap().len(), 1);
    let store_of_new = open(&new, &[]).unwrap();
    assert_eq!(*store_of_new.key(&model("m")).unwrap().unwrap().key, [19; 32]);
    assert!(matches!(open(&old, &[]), Err(store::OpenError::WrongKek)));
}
