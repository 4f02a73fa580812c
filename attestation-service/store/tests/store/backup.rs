// SPDX-License-Identifier: Apache-2.0
//! Backups: whole, of one spelling, and restored into an empty place of either kind.

use std::sync::atomic::{AtomicBool, Ordering};

use store::{
    ArchiveError, InitOptions, KekSource, Location, OpenOptions, OwnerChange, RedeemError, RestoreError,
    RestoreOptions, Store, Successor,
};
use types::{Hex32, Sha256Digest};

use super::place::{NOW, Place, key, model, refusal_entry, release_entry};

/// With 331 entries in its log: 320 of releases, one of a refusal, ten of changes.
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
    store.command_of_owner(&model("m"), 4, &OwnerChange::Tenants(Some(b"tenants".to_vec()))).unwrap();
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
    assert_eq!(other.key(&model("m")).unwrap().unwrap().tenants.as_deref(), Some(&b"tenants"[..]));
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
    for path in ["tile/0/000", "tile/0/001.p/75", "tile/1/000.p/1", "tile/entries/001.p/75"] {
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
    assert_eq!(other.append_audit(&release_entry(1)).unwrap().index, 331);
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
    assert_eq!(Store::open_with(&location, &options).unwrap().checkpoint().unwrap().head().size(), 332);
}

/// From a directory into a database server, and back.
pub(crate) fn backups_move_stores(server: &test_postgres::Server) {
    let (from, to, back) = (Place::directory(), Place::postgres(server), tempfile::tempdir().unwrap());
    let store = filled(&from);
    let kek = KekSource::File(from.kek());
    let moved = restored(&to.location(), &kek, &archive(&store));
    same(&store, &moved);
    assert_eq!(moved.append_audit(&release_entry(5)).unwrap().index, 331);
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
    assert!(matches!(restore(&bytes, &known), Err(RestoreError::RolledBack { known: 332, found: 331 })));
    // Another history of the same log's key.
    let twin = tempfile::tempdir().unwrap();
    let twin_location = Location::from(&twin.path().join("twin"));
    let twin = restored(&twin_location, &KekSource::File(place.kek()), &bytes);
    let fork = twin.append_audit(&release_entry(2)).unwrap().checkpoint;
    let forked = RestoreOptions { known_checkpoint: Some(fork), ..good.clone() };
    assert!(matches!(restore(&archive(&store), &forked), Err(RestoreError::RolledBack { known: 332, found: 332 })));
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

/// The members of an archive by name, in their order.
fn members(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(bytes);
    let member = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let (mut entry, mut content) = (entry.unwrap(), Vec::new());
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        (entry.path().unwrap().to_str().unwrap().to_owned(), content)
    };
    archive.entries().unwrap().map(member).collect()
}

/// An archive of these members, as the program writes it, with a manifest that fits them.
fn made_up(mut members: Vec<(String, Vec<u8>)>) -> Vec<u8> {
    let described: Vec<_> = members.iter().take_while(|(name, _)| name != "manifest.json").collect();
    let described: Vec<_> = described
        .into_iter()
        .map(|(name, bytes)| {
            let digest = Sha256Digest::of(bytes);
            format!(r#"{{"name":"{name}","bytes":{},"sha256":"{digest}"}}"#, bytes.len())
        })
        .collect();
    let manifest = members.iter_mut().find(|(name, _)| name == "manifest.json").unwrap();
    let text = String::from_utf8(manifest.1.clone()).unwrap();
    let (before, _) = text.split_once("\"members\":[").unwrap();
    manifest.1 = format!("{before}\"members\":[{}]}}", described.join(",")).into_bytes();
    let mut bytes = Vec::new();
    for (name, content) in members {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// Whoever can write the archive, and has no key: every digest fits, the signature does not.
pub(crate) fn archives_that_were_made_up_are_refused(place: &Place<'_>) {
    let store = filled(place);
    let bytes = archive(&store);
    assert_eq!(made_up(members(&bytes)), bytes, "this test writes archives as the program does");
    let dir = tempfile::tempdir().unwrap();
    let location = Location::from(&dir.path().join("new"));
    let options = RestoreOptions { kek: Some(KekSource::File(place.kek())), ..RestoreOptions::default() };
    let restore = |bytes: &[u8]| Store::restore(&location, bytes, &options, |_, _| ()).map(drop);
    for table in ["revoked", "owners", "owner_keys", "policies", "successors"] {
        let mut changed = members(&bytes);
        let member = changed.iter_mut().find(|(name, _)| *name == format!("tables/{table}.json")).unwrap();
        assert_ne!(member.1, b"[]", "{table}");
        member.1 = b"[]".to_vec();
        let refused = restore(&made_up(changed.clone()));
        assert!(matches!(refused, Err(RestoreError::Archive(ArchiveError::Signature(_)))), "{table} {refused:?}");
        // Signed by somebody else under the log's name.
        let text = format!("chrysalis/store-backup/v2\n{}\n", {
            let again = members(&made_up(changed.clone()));
            Sha256Digest::of(&again.iter().find(|(name, _)| name == "manifest.json").unwrap().1)
        });
        let stranger = release::log::LogSigner::new("example.invalid/audit", &[1; 32]).unwrap();
        changed.last_mut().unwrap().1 = stranger.sign(&text).unwrap().into_bytes();
        let refused = restore(&made_up(changed));
        assert!(matches!(refused, Err(RestoreError::Archive(ArchiveError::Signature(_)))), "{table} {refused:?}");
    }
    // An archive of another version of the tables says so, whatever its tables look like.
    let mut newer = members(&bytes);
    newer[0].1 = br#"{"schema":"chrysalis/store-backup/v2","version":99}"#.to_vec();
    newer[1].1 = b"another form".to_vec();
    assert!(matches!(restore(&made_up(newer)), Err(RestoreError::Version { found: 99, .. })));
    assert!(!dir.path().join("new/store.sqlite").exists() && !dir.path().join("new/audit").exists());
    restore(&bytes).unwrap();
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
