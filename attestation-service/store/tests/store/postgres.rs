// SPDX-License-Identifier: Apache-2.0
//! What only a store in a database server has: replicas, rows instead of tiles, a server that goes away.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use release::log::{EntryProof, TileError, TilePath, leaf_hash};
use store::{
    AuditError, DatabaseError, InitError, InitOptions, OpenError, OpenOptions, PostgresSettings, REPLICA_SECONDS,
    RedeemError, Store,
};
use test_postgres::Server;
use types::Sha256Digest;

use super::place::{NOW, Place, release_entry};
use super::wire::{Cut, Wire};

/// A case, and its name.
type Case = (&'static str, fn(&Server));

/// Cases that share a server.
pub(crate) const CASES: &[Case] = &[
    ("replicas_append_one_after_the_other", replicas_append_one_after_the_other),
    ("a_challenge_of_a_running_replica_is_redeemed_once", a_challenge_of_a_running_replica_is_redeemed_once),
    ("a_log_that_was_set_back_is_not_extended", a_log_that_was_set_back_is_not_extended),
    ("what_was_only_read_counts_as_seen", what_was_only_read_counts_as_seen),
    ("changed_rows_of_the_log_are_found", changed_rows_of_the_log_are_found),
    ("tables_are_made_once_and_those_of_a_newer_program_refused", tables_are_made_once),
    ("a_server_that_may_lose_writes_is_refused", a_server_that_may_lose_writes_is_refused),
    ("a_key_stays_where_a_commit_is_in_doubt", a_key_stays_where_a_commit_is_in_doubt),
    ("commands_of_owners_wait_for_each_other", commands_of_owners_wait_for_each_other),
];

/// Across the end of tiles: each replica takes in what the other one appended.
fn replicas_append_one_after_the_other(server: &Server) {
    let place = Place::postgres(server);
    let replicas = [place.made(), place.open()];
    let proofs = Mutex::new(BTreeMap::<u64, (EntryProof, Sha256Digest)>::new());
    std::thread::scope(|scope| {
        for caller in 0..6_u64 {
            let (replica, proofs) = (&replicas[usize::from(caller % 2 == 1)], &proofs);
            scope.spawn(move || {
                for round in 0..100 {
                    let entry = release_entry(caller * 1000 + round);
                    let proof = replica.append_audit(&entry).unwrap();
                    proof.verify(replica.audit_key()).unwrap();
                    let leaf = leaf_hash(&entry.to_bytes().unwrap());
                    assert!(proofs.lock().unwrap().insert(proof.index, (proof, leaf)).is_none(), "an index twice");
                }
            });
        }
    });
    let proofs = proofs.into_inner().unwrap();
    assert!(proofs.keys().copied().eq(0..600));
    assert!(proofs.values().all(|(proof, leaf)| proof.leaf == *leaf));
    for replica in &replicas {
        assert_eq!(replica.verify_audit().unwrap().key_releases, 600);
        assert_eq!(replica.audit_proof(255).unwrap().verify(replica.audit_key()).unwrap().head().size(), 600);
    }
    // Long behind: the log is looked at anew.
    let late = place.open();
    for batch in 0..9_u64 {
        std::thread::scope(|scope| {
            for caller in 0..8 {
                let replica = &replicas[0];
                scope.spawn(move || {
                    (0..32)
                        .for_each(|n| _ = replica.append_audit(&release_entry(batch * 256 + caller * 32 + n)).unwrap());
                });
            }
        });
    }
    assert_eq!(late.append_audit(&release_entry(9)).unwrap().index, 600 + 9 * 256);
    // The tiles are those of the specification: an exported log verifies as any other.
    let out = tempfile::tempdir().unwrap();
    let checkpoint = late.export_audit(out.path()).unwrap();
    let mut entries = 0;
    let verified = tile_log::verify(&tile_log::TileDir::new(out.path()), late.audit_key(), |_, _| {
        entries += 1;
        Ok(())
    });
    assert_eq!((verified.unwrap().head(), entries), (checkpoint.head(), checkpoint.head().size()));
    for path in ["tile/0/000", "tile/1/000.p/11", "tile/entries/000", "tile/0/011.p/89", "tile/entries/011.p/89"] {
        let path: TilePath = path.parse().unwrap();
        assert_eq!(late.tile(&path).unwrap(), std::fs::read(out.path().join(path.to_string())).unwrap(), "{path}");
    }
    assert!(late.tile(&"tile/0/099".parse().unwrap()).is_err());
    assert!(late.export_audit(out.path()).is_err(), "a log is not written over another");
}

fn a_challenge_of_a_running_replica_is_redeemed_once(server: &Server) {
    let place = Place::postgres(server);
    let (one, two) = (place.made(), place.open());
    assert_eq!(*one.challenge_secret().unwrap(), *two.challenge_secret().unwrap());
    let (first, second) = ([1; 8], [2; 8]);
    one.enter_replica(&first, "one").unwrap();
    two.enter_replica(&second, "two").unwrap();
    let mut number = 0_u32;
    let mut redeem = |by: &Store, maker| {
        number += 1;
        by.redeem_made_by(maker, &Sha256Digest::of(&number.to_be_bytes()), NOW + 60, NOW)
    };
    redeem(&two, Some(first)).unwrap();
    redeem(&one, Some(second)).unwrap();
    assert!(matches!(redeem(&one, Some([3; 8])), Err(RedeemError::Void)), "nobody's");
    // At both at once: one gets it.
    for round in 0..20_u32 {
        let token = Sha256Digest::of(&[b"race".as_slice(), &round.to_be_bytes()].concat());
        let won: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|n| {
                    let (by, maker) = if n % 2 == 0 { (&one, None) } else { (&two, Some(first)) };
                    scope.spawn(move || match by.redeem_made_by(maker, &token, NOW + 60, NOW) {
                        Ok(_) => 1,
                        Err(RedeemError::AlreadyRedeemed) => 0,
                        Err(other) => panic!("{other}"),
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(won, 1, "round {round}");
    }
    // Without a word for too long.
    place.tamper(&format!("UPDATE replicas SET beat = beat - {} WHERE name = 'one'", REPLICA_SECONDS + 5));
    assert!(matches!(redeem(&two, Some(first)), Err(RedeemError::Void)));
    one.beat_replica(&first, "one").unwrap();
    redeem(&two, Some(first)).unwrap();
    // Started again under its name, and ended.
    one.enter_replica(&[4; 8], "one").unwrap();
    assert!(matches!(redeem(&two, Some(first)), Err(RedeemError::Void)));
    redeem(&two, Some([4; 8])).unwrap();
    one.leave_replica(&[4; 8]).unwrap();
    assert!(matches!(redeem(&two, Some([4; 8])), Err(RedeemError::Void)));
    // A replica that is forgotten for a while goes on with its next word.
    two.beat_replica(&[4; 8], "one").unwrap();
    redeem(&two, Some([4; 8])).unwrap();
}

/// As after a change to a standby that had not everything: who saw more does not go on.
fn a_log_that_was_set_back_is_not_extended(server: &Server) {
    let place = Place::postgres(server);
    let store = place.made();
    store.append_audit(&release_entry(0)).unwrap();
    let old = store.checkpoint().unwrap();
    store.append_audit(&release_entry(1)).unwrap();
    let known = store.checkpoint().unwrap();
    place.tamper("DELETE FROM audit_entries WHERE number = 1");
    let set_back = format!(
        "UPDATE audit_head SET size = 1, root = decode('{}', 'hex'), note = '{}'",
        old.head().root(),
        old.note()
    );
    place.tamper(&set_back);
    for _ in 0..2 {
        let refused = store.append_audit(&release_entry(2));
        assert!(matches!(refused, Err(AuditError::RolledBack { known: 2, found: 1 })), "{refused:?}");
    }
    // A new process does not know better, unless it is told.
    let options = OpenOptions { known_checkpoint: Some(known.note().to_owned()), ..place.options() };
    let refused = Store::open_with(place.location(), &options).err();
    assert!(matches!(refused, Some(OpenError::RolledBack { known: 2, found: 1 })));
    let other = place.open();
    other.append_audit(&release_entry(3)).unwrap();
    // The same size again, and another history.
    assert!(matches!(store.append_audit(&release_entry(2)), Err(AuditError::RolledBack { known: 2, found: 2 })));
    other.append_audit(&release_entry(4)).unwrap();
    assert!(matches!(store.append_audit(&release_entry(2)), Err(AuditError::RolledBack { known: 2, found: 3 })));
    let refused = Store::open_with(place.location(), &options).err();
    assert!(matches!(refused, Some(OpenError::RolledBack { known: 2, found: 3 })));
    assert_eq!(other.verify_audit().unwrap().key_releases, 3);
}

/// A replica that appended nothing, but showed others a head, stands by it.
fn what_was_only_read_counts_as_seen(server: &Server) {
    let place = Place::postgres(server);
    let (one, reader) = (place.made(), place.open());
    one.append_audit(&release_entry(0)).unwrap();
    let old = one.checkpoint().unwrap();
    one.append_audit(&release_entry(1)).unwrap();
    assert_eq!(reader.checkpoint().unwrap().head().size(), 2);
    assert!(!reader.log_set_back());
    drop(one);
    place.tamper("DELETE FROM audit_entries WHERE number = 1");
    place.tamper(&format!(
        "UPDATE audit_head SET size = 1, root = decode('{}', 'hex'), note = '{}'",
        old.head().root(),
        old.note()
    ));
    let refused = |found: u64| {
        let (appended, read) = (reader.append_audit(&release_entry(2)).map(drop), reader.checkpoint().map(drop));
        for result in [appended, read] {
            assert!(matches!(&result, Err(AuditError::RolledBack { known: 2, found: f }) if *f == found), "{result:?}");
        }
        assert!(reader.log_set_back());
        let shown = reader.tile(&"tile/0/000.p/1".parse().unwrap());
        assert!(matches!(shown, Err(TileError::Read { .. })), "{shown:?}");
    };
    refused(1);
    // Another history of the same size, and of a larger one.
    let other = place.open();
    for (number, size) in [(3, 2), (4, 3)] {
        other.append_audit(&release_entry(number)).unwrap();
        refused(size);
    }
    assert!(!other.log_set_back());
    assert_eq!(other.verify_audit().unwrap().key_releases, 3);
}

fn changed_rows_of_the_log_are_found(server: &Server) {
    let place = Place::postgres(server);
    let store = place.made();
    (0..300).for_each(|number| _ = store.append_audit(&release_entry(number)).unwrap());
    assert_eq!(store.verify_audit().unwrap().key_releases, 300);
    for (change, undo) in [
        (
            "UPDATE audit_entries SET entry = entry || 'x' WHERE number = 7",
            "UPDATE audit_entries SET entry = substr(entry, 1, length(entry) - 1) WHERE number = 7",
        ),
        (
            "UPDATE audit_entries SET number = 1000 WHERE number = 299",
            "UPDATE audit_entries SET number = 299 WHERE number = 1000",
        ),
        (
            "UPDATE audit_tiles SET hashes = set_byte(hashes, 5, get_byte(hashes, 5) # 1)",
            "UPDATE audit_tiles SET hashes = set_byte(hashes, 5, get_byte(hashes, 5) # 1)",
        ),
        (
            "UPDATE audit_tiles SET root = set_byte(root, 5, get_byte(root, 5) # 1)",
            "UPDATE audit_tiles SET root = set_byte(root, 5, get_byte(root, 5) # 1)",
        ),
        (
            "UPDATE audit_head SET note = replace(note, E'\\n300\\n', E'\\n299\\n')",
            "UPDATE audit_head SET note = replace(note, E'\\n299\\n', E'\\n300\\n')",
        ),
    ] {
        place.tamper(change);
        assert!(store.verify_audit().is_err(), "{change}");
        place.tamper(undo);
        assert!(store.verify_audit().is_ok(), "{undo}");
    }
    // A log whose right edge is damaged does not open.
    place.tamper("DELETE FROM audit_entries WHERE number = 298");
    assert!(matches!(place.try_open(), Err(OpenError::AuditRows(_))));
}

fn tables_are_made_once(server: &Server) {
    let place = Place::postgres(server);
    let missing = place.try_open();
    assert!(matches!(missing, Err(OpenError::Kek(_))), "no key, nothing else is asked");
    place.init();
    let kek = tempfile::tempdir().unwrap();
    let again = InitOptions { audit_origin: "x".into(), kek: Some(kek.path().join("kek").into()) };
    assert!(matches!(Store::init(place.location(), &again), Err(InitError::NotEmpty)));
    assert!(!kek.path().join("kek").exists(), "a key that wraps nothing is not left behind");
    let nothing = InitOptions { audit_origin: "x".into(), kek: None };
    assert!(matches!(Store::init(place.location(), &nothing), Err(InitError::NoKek)));
    // Tables of no version yet are brought up to date by whoever comes first, and by one alone.
    let empty = Place::postgres(server);
    std::fs::copy(place.kek(), empty.kek()).unwrap();
    assert!(matches!(empty.try_open(), Err(OpenError::Database(DatabaseError::Empty))));
    empty.sql("CREATE TABLE schema_version (one BIGINT PRIMARY KEY, version BIGINT); INSERT INTO schema_version VALUES (1, 0)");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(matches!(empty.try_open(), Err(OpenError::Malformed("audit key")))));
        }
    });
    place.tamper("UPDATE schema_version SET version = 99");
    assert!(matches!(place.try_open(), Err(OpenError::Database(DatabaseError::Version { found: 99, .. }))));
}

/// The connection dies after COMMIT went to the server, before it went there, and long before.
fn a_key_stays_where_a_commit_is_in_doubt(server: &Server) {
    use Cut::{After, Before};
    for (cut, in_doubt, made) in [
        (After(b"COMMIT"), true, true),
        (Before(b"COMMIT"), true, false),
        (Before(b"CREATE TABLE schema_version"), false, false),
    ] {
        let url = server.database().unwrap();
        let name = url.strip_prefix("postgres:///").unwrap().split('?').next().unwrap();
        let wire = Wire::to(&url, cut);
        let kek = wire.dir.path().join("kek");
        let options = InitOptions { audit_origin: "doubt.invalid/audit".into(), kek: Some(kek.clone().into()) };
        let through = format!("postgres:///{name}?host={}&user=postgres", wire.dir.path().display());
        let own: &[(&str, &[u8])] = &[("identity", b"seed")];
        let result = Store::init_with(PostgresSettings::parse(&through, None).unwrap(), &options, own);
        let doubted = matches!(&result, Err(InitError::Database(DatabaseError::InDoubt(_))));
        assert!(result.is_err() && doubted == in_doubt, "{cut:?} {result:?}");
        assert_eq!(kek.exists(), in_doubt, "{cut:?}");
        if in_doubt {
            let options = OpenOptions { kek: Some(kek.into()), ..OpenOptions::default() };
            let opened = Store::open_with(PostgresSettings::parse(&url, None).unwrap(), &options);
            assert_eq!(opened.is_ok(), made, "{cut:?}");
            // With all that belongs to it.
            let secret = opened.ok().map(|store| store.secret("identity").unwrap().unwrap().to_vec());
            assert_eq!(secret, made.then(|| b"seed".to_vec()), "{cut:?}");
        }
    }
}

fn a_server_that_may_lose_writes_is_refused(server: &Server) {
    let place = Place::postgres(server);
    place.init();
    for (setting, word) in [("full_page_writes", "full_page_writes"), ("fsync", "fsync")] {
        let set = |value: &str| {
            // Each takes effect in time, or the loop below waits for it.
            place.sql(&format!("ALTER SYSTEM SET {setting} = {value}"));
            place.sql("SELECT pg_reload_conf()");
            while place.sql(&format!("SHOW {setting}")) != value {
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        set("off");
        let refused = place.try_open();
        assert!(
            matches!(&refused, Err(OpenError::Database(DatabaseError::Unsuitable(what))) if what.contains(word)),
            "{setting}"
        );
        set("on");
        place.open();
    }
    // Asked for less than durable commits, this program demands them nevertheless.
    let name = place.sql("SELECT current_database()");
    place.sql(&format!("ALTER DATABASE {name} SET synchronous_commit = off"));
    let store = place.open();
    assert_eq!(store.append_audit(&release_entry(0)).unwrap().index, 0);
    place.sql(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on"));
    assert!(matches!(place.try_open(), Err(OpenError::Database(_))), "a server that takes no writes");
}

fn commands_of_owners_wait_for_each_other(server: &Server) {
    let place = Place::postgres(server);
    let (one, two) = (place.made(), place.open());
    let entered = AtomicBool::new(false);
    let held = one.hold_commands().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _held = two.hold_commands().unwrap();
            entered.store(true, Ordering::SeqCst);
        });
        // The other one is waiting for the lock, and has not entered.
        let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        while place.sql(waiting) != "1" {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!entered.load(Ordering::SeqCst));
        drop(held);
    });
    assert!(entered.load(Ordering::SeqCst));
}

/// While the server is gone every call fails, and none for ever; when it is back, the same store goes on by itself, and
/// what was proven is there.
#[test]
fn a_server_that_goes_away_loses_nothing() {
    let Some(mut server) = Server::start("a server that goes away").unwrap() else { return };
    let place = Place::postgres(&server);
    let (stores, url) = ([place.made(), place.open()], place.location());
    let kek = place.keep_key();
    let proven = Mutex::new(Vec::new());
    for round in 0..3_u64 {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for caller in 0..4_u64 {
                let (store, proven, stop) = (&stores[usize::from(caller % 2 == 1)], &proven, &stop);
                scope.spawn(move || {
                    for number in 0.. {
                        let entry = release_entry(round * 1_000_000 + caller * 100_000 + number);
                        match store.append_audit(&entry) {
                            Ok(proof) => {
                                proven.lock().unwrap().push((proof.index, leaf_hash(&entry.to_bytes().unwrap())))
                            }
                            Err(AuditError::Database(_) | AuditError::Batch(_)) => {}
                            Err(other) => panic!("{other}"),
                        }
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                    }
                });
            }
            let before = proven.lock().unwrap().len();
            while proven.lock().unwrap().len() < before + 20 {
                std::thread::sleep(Duration::from_millis(1));
            }
            server.crash().unwrap();
            let gone = stores[0].redeem(&Sha256Digest::of(&round.to_be_bytes()), NOW + 60, NOW);
            assert!(matches!(gone, Err(RedeemError::Batch(_) | RedeemError::Database(_))));
            server.start_again().unwrap();
            // By itself, on both.
            for store in &stores {
                while store.append_audit(&release_entry(round)).is_err() {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            stop.store(true, Ordering::SeqCst);
        });
    }
    // Connections that stay open and answer nothing: an error in time, and no key.
    server.freeze(true).unwrap();
    let started = Instant::now();
    let frozen = stores[0].append_audit(&release_entry(1));
    server.freeze(false).unwrap();
    assert!(matches!(frozen, Err(AuditError::Database(_))), "{frozen:?}");
    assert!(started.elapsed() < Duration::from_secs(60));
    while stores[0].append_audit(&release_entry(2)).is_err() {
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(stores);
    let options = OpenOptions { kek: Some(kek.path().join("kek").into()), ..OpenOptions::default() };
    let store = Store::open_with(url, &options).unwrap();
    let mut entries = BTreeMap::new();
    store.verify_audit_with(|index, entry| _ = entries.insert(index, leaf_hash(&entry.to_bytes().unwrap()))).unwrap();
    for (index, leaf) in proven.into_inner().unwrap() {
        assert_eq!(entries.get(&index), Some(&leaf), "a proof without its entry");
    }
}

/// Over TCP with TLS: the certificate's issuer and the host's name are verified.
#[test]
fn tls_is_verified() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let authority = tempfile::tempdir().unwrap();
    let started = Server::start_with("TLS to the database", |dir| {
        let key = rcgen::KeyPair::generate()?;
        let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?.self_signed(&key)?;
        std::fs::write(dir.join("server.crt"), certificate.pem())?;
        std::fs::write(authority.path().join("ca.pem"), certificate.pem())?;
        std::fs::write(dir.join("server.key"), key.serialize_pem())?;
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(dir.join("server.key"), std::fs::Permissions::from_mode(0o600))?;
        let file = |name: &str| dir.join(name).display().to_string();
        Ok(vec![
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", file("server.crt")),
            format!("ssl_key_file={}", file("server.key")),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
        ])
    });
    let Some(server) = started.unwrap() else { return };
    server.sql("postgres", "CREATE DATABASE tls TEMPLATE template0").unwrap();
    let other = rcgen::KeyPair::generate().unwrap();
    let other = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&other).unwrap();
    std::fs::write(authority.path().join("other.pem"), other.pem()).unwrap();
    let kek = authority.path().join("kek");
    let open = |host: &str, authorities: &str| {
        let file = authority.path().join(authorities);
        let url = format!("postgres://postgres@{host}:{port}/tls?sslmode=verify-full&sslrootcert={}", file.display());
        let settings = PostgresSettings::parse(&url, None).unwrap();
        let options = InitOptions { audit_origin: "example.invalid/audit".into(), kek: Some(kek.clone().into()) };
        Store::init(settings, &options)
    };
    for (host, authorities) in [("127.0.0.1", "other.pem"), ("localhost", "ca.pem")] {
        let refused = open(host, authorities);
        assert!(matches!(refused, Err(InitError::Database(DatabaseError::Unreachable(_)))), "{host} {authorities}");
        assert!(!kek.exists());
    }
    open("127.0.0.1", "ca.pem").unwrap();
    let encrypted = "SELECT count(*) FROM pg_stat_ssl WHERE ssl";
    let store = {
        let url = format!(
            "postgres://postgres@127.0.0.1:{port}/tls?sslmode=verify-full&sslrootcert={}",
            authority.path().join("ca.pem").display()
        );
        let options = OpenOptions { kek: Some(kek.into()), ..OpenOptions::default() };
        Store::open_with(PostgresSettings::parse(&url, None).unwrap(), &options).unwrap()
    };
    assert_ne!(server.sql("tls", encrypted).unwrap(), "0");
    assert_eq!(store.append_audit(&release_entry(0)).unwrap().index, 0);
}
