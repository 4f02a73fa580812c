// SPDX-License-Identifier: Apache-2.0
//! The operator's commands on stores: copies, other key-wrapping keys, the log for witnesses; in a directory, in
//! PostgreSQL, and from one to the other.

use std::path::Path;
use std::process::Command;

use release::log::{LogKey, WitnessSigner, cosign};
use serde_json::Value;
use store::{OpenOptions, Store};
use test_postgres::Server;

const MODEL: &str = "m@r1:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";

/// Exit code and the JSON document of one call.
fn call(args: &[&str]) -> (i32, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_attestation-service")).args(args).arg("--json").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.lines().last().unwrap_or_default();
    (output.status.code().unwrap(), serde_json::from_str(last).unwrap_or(Value::Null))
}

/// The document of a call that is accepted.
fn accepted(args: &[&str]) -> Value {
    let (code, document) = call(args);
    assert_eq!(code, 0, "{args:?}: {document}");
    document
}

/// The code of a call that is refused.
fn refused(args: &[&str]) -> String {
    let (code, document) = call(args);
    assert_eq!(code, 2, "{args:?}: {document}");
    document["reasons"][0]["code"].as_str().unwrap().to_owned()
}

/// `--store` and `--kek` of one store.
#[derive(Clone)]
struct Place {
    store: String,
    kek: String,
}

impl Place {
    /// A command on this store.
    fn args<'a>(&'a self, command: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
        [command, &["--store", &self.store, "--kek", &self.kek], more].concat()
    }
}

/// A service that has the log and enters nothing: a checkpoint without the change is not given out. (Replicas on one
/// database enter for each other.)
fn checkpoints_have_every_change(place: &Place) {
    let Some(dir) = (!place.store.contains("://")).then_some(&place.store) else { return };
    let options = OpenOptions { kek: Some(place.kek.parse().unwrap()), ..OpenOptions::default() };
    let service = Store::open_with(Path::new(dir), &options).unwrap();
    let platform = types::Sha256Digest::of(b"platform").to_string();
    accepted(&place.args(&["platforms", "revoke"], &["--platform", &platform]));
    assert_eq!(refused(&place.args(&["audit", "checkpoint"], &["--wait", "0"])), "changes_waiting");
    let before = service.checkpoint().unwrap().head().size();
    service.enter_changes().unwrap();
    assert_eq!(accepted(&place.args(&["audit", "checkpoint"], &["--wait", "0"]))["size"], before + 1);
    // A row that the service refuses is named, and not left to be waited for.
    let database = rusqlite::Connection::open(Path::new(dir).join("store.sqlite")).unwrap();
    database.execute("INSERT INTO operator_changes (number, entry) VALUES (1, x'7b7d')", []).unwrap();
    let (code, document) = call(&place.args(&["audit", "checkpoint"], &["--wait", "0"]));
    let reason = &document["reasons"][0];
    assert_eq!((code, reason["code"].as_str()), (2, Some("changes_waiting")), "{document}");
    assert!(reason["detail"].as_str().unwrap().contains("row 1 of operator_changes"), "{document}");
    assert!(reason["fix"].as_str().unwrap().contains("remove it"), "{document}");
    assert!(service.enter_changes().is_err());
    database.execute("DELETE FROM operator_changes WHERE number = 1", []).unwrap();
    accepted(&place.args(&["audit", "checkpoint"], &["--wait", "0"]));
}

fn operations(place: &Place, other: &Place, dir: &Path) {
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let made = accepted(&place.args(&["init"], &[]));
    assert_eq!(call(&place.args(&["init"], &[])).0, 1, "a store is never made twice");
    let key = file("key");
    std::fs::write(&key, [7; 32]).unwrap();
    accepted(&place.args(&["keys", "import"], &["--model", MODEL, "--version", "1", "--key", &key]));

    // A copy, restored elsewhere with the same key-wrapping key.
    let archive = file("backup.tar");
    let backup = accepted(&place.args(&["backup"], &["--out", &archive]));
    assert_eq!(backup["size"], 1, "the import of the key");
    assert_eq!(call(&place.args(&["backup"], &["--out", &archive])).0, 1, "a copy is never written over another");
    let there = Place { kek: place.kek.clone(), ..other.clone() };
    accepted(&there.args(&["restore"], &["--in", &archive]));
    assert_eq!(call(&there.args(&["restore"], &["--in", &archive])).0, 1, "only into an empty place");
    assert_eq!(accepted(&there.args(&["identity"], &[]))["spki_sha256"], made["spki_sha256"]);
    assert_eq!(accepted(&there.args(&["keys", "list"], &[]))["keys"][0]["model"], MODEL);
    accepted(&there.args(&["audit", "verify"], &[]));
    // Only looked at: where a store is, and where none is made by it.
    assert_eq!(accepted(&place.args(&["restore"], &["--in", &archive, "--check"]))["size"], 1);
    let nowhere = Place { store: file("nowhere"), kek: place.kek.clone() };
    accepted(&nowhere.args(&["restore"], &["--in", &archive, "--check"]));
    assert!(!Path::new(&nowhere.store).exists());
    // A changed archive, and another key.
    let changed = file("changed.tar");
    let mut bytes = std::fs::read(&archive).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&changed, bytes).unwrap();
    let empty = Place { store: file("empty"), kek: place.kek.clone() };
    assert_eq!(refused(&empty.args(&["restore"], &["--in", &changed])), "backup_refused");
    assert_eq!(refused(&place.args(&["restore"], &["--in", &changed, "--check"])), "backup_refused");
    let stranger = Place { store: file("stranger"), kek: format!("file:{}", file("stranger.kek")) };
    accepted(&stranger.args(&["init"], &[]));
    let wrong = Place { kek: stranger.kek.clone(), ..empty.clone() };
    assert_eq!(refused(&wrong.args(&["restore"], &["--in", &archive])), "kek_wrong");
    assert_eq!(refused(&wrong.args(&["restore"], &["--in", &archive, "--check"])), "kek_wrong");
    assert_eq!(call(&wrong.args(&["identity"], &[])).0, 1, "there is nothing of it");

    // The log for witnesses, and back.
    let (checkpoint, out) = (file("checkpoint"), file("log"));
    checkpoints_have_every_change(place);
    let newest = accepted(&place.args(&["audit", "checkpoint"], &["--out", &checkpoint]));
    assert_eq!(newest["checkpoint"], std::fs::read_to_string(&checkpoint).unwrap());
    accepted(&place.args(&["audit", "export"], &["--out", &out]));
    assert_eq!(std::fs::read_to_string(Path::new(&out).join("checkpoint")).unwrap(), newest["checkpoint"]);
    assert_eq!(call(&place.args(&["audit", "export"], &["--out", &out])).0, 1);
    let log: LogKey = serde_json::from_value(made["audit_key"].clone()).unwrap();
    let witness = WitnessSigner::new("witness", &[5; 32]).unwrap();
    let (cosigned, _) =
        cosign(&witness, None, newest["checkpoint"].as_str().unwrap(), &log, &[], 1_750_000_000).unwrap();
    std::fs::write(&checkpoint, cosigned.note()).unwrap();
    accepted(&place.args(&["audit", "cosign"], &["--checkpoint", &checkpoint]));
    assert_eq!(accepted(&place.args(&["audit", "checkpoint"], &[]))["checkpoint"], cosigned.note());
    let others = accepted(&stranger.args(&["audit", "checkpoint"], &["--out", &checkpoint]));
    assert_ne!(others["checkpoint"], newest["checkpoint"]);
    assert_eq!(refused(&place.args(&["audit", "cosign"], &["--checkpoint", &checkpoint])), "checkpoint");
    // A checkpoint of another log, or none at all, says nothing of the backup's age.
    let given = ["--in", &archive, "--checkpoint", &checkpoint];
    assert_eq!(refused(&empty.args(&["restore"], &given)), "checkpoint");
    std::fs::write(&checkpoint, "nonsense").unwrap();
    assert_eq!(refused(&empty.args(&["restore"], &given)), "checkpoint");
    // Nothing is imported for a revoked model.
    accepted(&there.args(&["keys", "revoke"], &["--model", MODEL]));
    let again = ["--model", MODEL, "--version", "2", "--key", &key];
    assert_eq!(refused(&there.args(&["keys", "import"], &again)), "model_revoked");

    // Everything under another key: with both, then with the new one alone.
    let before = accepted(&place.args(&["kek", "status"], &[]));
    let new = Place { store: place.store.clone(), kek: stranger.kek.clone() };
    let rotated = accepted(&new.args(&["kek", "rotate"], &["--kek", &place.kek]));
    assert_eq!((rotated["kept"].as_u64(), rotated["keks"].as_array().unwrap().len()), (Some(0), 1));
    assert_eq!(accepted(&new.args(&["kek", "rotate"], &["--kek", &place.kek]))["changed"], 0);
    assert_ne!(accepted(&new.args(&["kek", "status"], &[]))["keks"], before["keks"]);
    assert_eq!(call(&place.args(&["identity"], &[])).0, 1, "the old key opens nothing");
    assert_eq!(accepted(&new.args(&["identity"], &[]))["spki_sha256"], made["spki_sha256"]);
}

fn directory(dir: &Path, name: &str) -> Place {
    Place {
        store: dir.join(name).display().to_string(),
        kek: format!("file:{}", dir.join(format!("{name}.kek")).display()),
    }
}

#[test]
fn stores_in_directories() {
    let dir = tempfile::tempdir().unwrap();
    operations(&directory(dir.path(), "one"), &directory(dir.path(), "two"), dir.path());
}

#[test]
fn stores_in_postgresql_and_from_there_into_directories() {
    let Some(server) = Server::start("the operator's commands").unwrap() else { return };
    let dir = tempfile::tempdir().unwrap();
    let place = Place { store: server.database().unwrap(), ..directory(dir.path(), "one") };
    operations(&place, &directory(dir.path(), "two"), dir.path());
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = Place { store: server.database().unwrap(), ..directory(dir.path(), "two") };
    operations(&directory(dir.path(), "one"), &elsewhere, dir.path());
    // Without a key, with a password that everybody sees, with the address in a file.
    let no_key = server.database().unwrap();
    assert_eq!(call(&["init", "--store", &no_key]).0, 1);
    assert_eq!(call(&["identity", "--store", "postgres://u:secret@127.0.0.1/db"]).0, 64);
    let file = dir.path().join("address");
    std::fs::write(&file, &no_key).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let by_file = Place { store: format!("@{}", file.display()), ..directory(dir.path(), "three") };
    accepted(&by_file.args(&["init"], &[]));
    accepted(&by_file.args(&["identity"], &[]));
}
