// SPDX-License-Identifier: Apache-2.0
//! Tenants of a model: what its owner commands is sealed to guests with the key, and stands in the log.

use crate::world;

use std::process::Command;

use key_release::{OwnerAction, OwnerCommand, SetTenants, SignedOwnerCommand, owner_public_key};
use release_client::{ClientError, Released};
use store::{AuditEntry, OpenOptions, OperatorAct, OwnerChange, Store};
use types::{Base64, Blake3Digest, Document as _, ModelId, Sha256Digest, Tenants, tenants::Tenant};
use world::{Guest, KEY, World, model};

const OWNER: [u8; 32] = [0x11; 32];

fn tenant(id: &str) -> Tenant {
    Tenant {
        id: id.to_owned(),
        keys: vec![Sha256Digest::of(id.as_bytes())],
        max_tokens: Some(100),
        requests_at_once: None,
        requests_per_minute: Some(60),
        tokens_per_minute: None,
    }
}

fn tenants(model: ModelId, tenants: Vec<Tenant>) -> Tenants {
    Tenants { schema: Tenants::SCHEMA.to_owned(), model, tenants }
}

fn document(names: &[&str]) -> Vec<u8> {
    tenants(model(), names.iter().map(|name| tenant(name)).collect()).to_canonical().unwrap()
}

fn set(world: &World, sequence: u64, document: Option<Vec<u8>>) -> OwnerCommand {
    let action = OwnerAction::SetTenants(SetTenants { document: document.map(|bytes| Base64::new(bytes).unwrap()) });
    OwnerCommand { schema: OwnerCommand::SCHEMA.into(), service: world.pin, model: model(), sequence, action }
}

async fn send(world: &World, command: &OwnerCommand, key: &[u8; 32]) -> Result<(), String> {
    let bytes = command.sign(key).unwrap().to_canonical().unwrap();
    match world.connect().await.owner_command(bytes).await {
        Ok(_) => Ok(()),
        Err(ClientError::Refused(reasons)) => Err(reasons[0].code.clone()),
        Err(other) => panic!("{other}"),
    }
}

fn beside(world: &World) -> Store {
    Store::open_with(&world.store_dir(), &OpenOptions { sequencer: false, ..OpenOptions::default() }).unwrap()
}

async fn released(world: &World, guest: &Guest) -> Released {
    world.ask(guest).await.unwrap_or_else(|error| panic!("{error}"))
}

/// The digests that entries of keys name, in order.
fn named(store: &Store) -> Vec<Option<Sha256Digest>> {
    let mut named = Vec::new();
    let listed = store.verify_audit_with(|_, entry| {
        if let AuditEntry::KeyRelease(entry) = entry {
            named.push(entry.tenants);
        }
    });
    listed.unwrap();
    named
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_gets_the_tenants_with_the_key_and_the_log_names_them() {
    let world = World::start().await;
    let guest = world.guest().await;
    let store = beside(&world);
    store.register_owner(&model(), &owner_public_key(&OWNER)).unwrap();
    assert!(released(&world, &guest).await.tenants.is_none(), "a model without tenants is as before");
    let mut expected = vec![None];
    for (sequence, names) in [(1, &["a", "b"][..]), (2, &["c"]), (3, &[])] {
        let document = document(names);
        send(&world, &set(&world, sequence, Some(document.clone())), &OWNER).await.unwrap();
        let released = released(&world, &guest).await;
        assert_eq!((*released.key, released.tenants.as_deref()), (KEY, Some(&document)));
        let read = Tenants::read(&released.tenants.unwrap(), &model()).unwrap();
        assert_eq!(read.tenants.iter().map(|tenant| tenant.id.as_str()).collect::<Vec<_>>(), names);
        expected.push(Some(Sha256Digest::of(&document)));
    }
    send(&world, &set(&world, 4, None), &OWNER).await.unwrap();
    assert!(released(&world, &guest).await.tenants.is_none());
    expected.push(None);
    assert_eq!(named(&store), expected);
    // What was set is named where it is said that it was carried out, too.
    let mut carried_out = Vec::new();
    let listed = store.verify_audit_with(|_, entry| match entry {
        AuditEntry::Operator(entry) if entry.act == OperatorAct::OwnerCommanded => carried_out.push(entry.content),
        _ => {}
    });
    listed.unwrap();
    assert_eq!(carried_out, expected[1..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_document_of_the_model_s_tenants_is_never_set() {
    let world = World::start().await;
    let guest = world.guest().await;
    beside(&world).register_owner(&model(), &owner_public_key(&OWNER)).unwrap();
    let good = document(&["a"]);
    assert_eq!(send(&world, &set(&world, 1, Some(good.clone())), &[0x22; 32]).await, Err("owner_signature".into()));
    let other = ModelId::new("model", "1", Blake3Digest::of(b"another")).unwrap();
    let twice = [tenant("a"), Tenant { keys: tenant("a").keys, ..tenant("b") }];
    let text = String::from_utf8(good.clone()).unwrap();
    for (what, bad) in [
        ("another model's", tenants(other, vec![tenant("a")]).to_canonical().unwrap()),
        ("a digest twice", tenants(model(), twice.into()).to_canonical().unwrap()),
        ("an unknown field", text.replace("\"id\"", "\"burst\":1,\"id\"").into_bytes()),
        ("not canonical", format!("{text} ").into_bytes()),
        ("nothing", Vec::new()),
    ] {
        assert_eq!(send(&world, &set(&world, 1, Some(bad)), &OWNER).await, Err("tenants_malformed".into()), "{what}");
    }
    assert!(released(&world, &guest).await.tenants.is_none());
    send(&world, &set(&world, 1, Some(good.clone())), &OWNER).await.unwrap();
    assert_eq!(send(&world, &set(&world, 1, None), &OWNER).await, Err("owner_sequence".into()), "an old command");
    assert_eq!(released(&world, &guest).await.tenants.as_deref(), Some(&good));
}

/// Who writes the database beside the service can take a document away or put another one there, and a guest still serves by
/// none of another model.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_refuses_the_tenants_of_another_model() {
    let world = World::start().await;
    let guest = world.guest().await;
    let store = beside(&world);
    store.register_owner(&model(), &owner_public_key(&OWNER)).unwrap();
    let other = ModelId::new("model", "1", Blake3Digest::of(b"another")).unwrap();
    let swapped = tenants(other, vec![tenant("mallory")]).to_canonical().unwrap();
    for (sequence, bad) in [(1, swapped), (2, b"{}".to_vec())] {
        store.command_of_owner(&model(), sequence, &OwnerChange::Tenants(Some(bad))).unwrap();
        let Err(refused) = world.ask(&guest).await else { panic!("it was taken") };
        assert!(matches!(&refused, ClientError::Answer { rule, .. } if rule.starts_with("tenants: ")), "{refused}");
        assert!(!refused.to_string().contains("mallory"));
    }
    // What no document can be is not sent at all.
    store.command_of_owner(&model(), 3, &OwnerChange::Tenants(Some(Vec::new()))).unwrap();
    assert_eq!(world.refusal(&guest).await[0].0, "store_unavailable");
}

/// As many as there may be, through every message on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_document_comes_through() {
    let world = World::start().await;
    let guest = world.guest().await;
    beside(&world).register_owner(&model(), &owner_public_key(&OWNER)).unwrap();
    let all = (0..types::tenants::MAX_TENANTS).map(|number| tenant(&format!("{number:0>32}"))).collect();
    let document = tenants(model(), all).to_canonical().unwrap();
    assert!(document.len() > 150_000);
    send(&world, &set(&world, 1, Some(document.clone())), &OWNER).await.unwrap();
    assert_eq!(released(&world, &guest).await.tenants.as_deref(), Some(&document));
}

/// The whole way with the program: a key of a tenant, a document, a signed command, its cosigner's view, and its sending.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_sets_tenants_from_files() {
    let world = World::start().await;
    let guest = world.guest().await;
    let call = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_attestation-service")).args(args).arg("--json").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let document: serde_json::Value = serde_json::from_str(text.lines().last().unwrap_or("null")).unwrap();
        (output.status.code().unwrap(), document)
    };
    let path = |name: &str| world.dir.path().join(name).to_str().unwrap().to_owned();
    let (owner, secret, file, signed) = (path("owner.key"), path("a.key"), path("tenants.json"), path("command.json"));
    let (model_name, pin) = (model().to_string(), world.pin.to_string());
    let address = world.service.as_ref().unwrap().address.to_string();
    let public = call(&["owner", "keygen", "--out", &owner]).1["owner"].as_str().unwrap().to_owned();
    beside(&world).register_owner(&model(), &public.parse().unwrap()).unwrap();

    let (code, made) = call(&["owner", "tenant-key", "--out", &secret]);
    let key = std::fs::read_to_string(&secret).unwrap();
    assert_eq!((code, made["sha256"].as_str()), (0, Some(Sha256Digest::of(key.as_bytes()).to_string().as_str())));
    assert!(key.starts_with("sk-chrysalis-") && key.len() == 13 + 43 && !made.to_string().contains(&key), "{key}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&secret).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(call(&["owner", "tenant-key", "--out", &secret]).0, 1, "a key is never overwritten");

    let sign = |sequence: &str, what: &[&str]| {
        let to = ["owner", "sign", "--key", &owner, "--service", &pin, "--model", &model_name, "--out", &signed];
        call(&[&to[..], &["--sequence", sequence], what].concat())
    };
    let write = |id: &str| {
        let tenant = serde_json::json!({ "id": id, "keys": [made["sha256"]], "requests_per_minute": 60 });
        let document = serde_json::json!({ "schema": Tenants::SCHEMA, "tenants": [tenant], "model": model() });
        std::fs::write(&file, serde_json::to_vec_pretty(&document).unwrap()).unwrap();
    };
    write("Not an id");
    let (code, refused) = sign("1", &["--set-tenants", &file]);
    assert_eq!((code, refused["reasons"][0]["code"].as_str()), (2, Some("tenants_malformed")));
    write("a");
    assert_eq!(sign("1", &["--set-tenants", &file, "--clear-tenants"]).0, 64, "one action");
    assert_eq!(sign("1", &["--set-tenants", &file]).0, 0);
    let bytes = std::fs::read(&signed).unwrap();
    assert!(!String::from_utf8(bytes.clone()).unwrap().contains(&key));
    let inner = SignedOwnerCommand::from_canonical(&bytes).unwrap().unverified().unwrap();
    let OwnerAction::SetTenants(SetTenants { document: Some(document) }) = inner.action else { panic!() };
    // Whoever cosigns reads all of it.
    let cosign =
        ["owner", "cosign", "--key", &owner, "--command", &signed, "--out", &path("twice"), "--owner", &public];
    let (code, shown) = call(&cosign);
    assert_eq!((code, shown["tenants"]["tenants"][0]["id"].as_str()), (0, Some("a")));
    assert_eq!(shown["tenants_sha256"], Sha256Digest::of(document.as_slice()).to_string());

    let send = || call(&["owner", "send", "--service", &address, "--pin", &pin, "--command", &signed]).0;
    assert_eq!(send(), 0);
    let found = released(&world, &guest).await.tenants.unwrap();
    assert_eq!(found.as_slice(), document.as_slice());
    assert_eq!(Tenants::read(&found, &model()).unwrap().tenants[0].keys, [Sha256Digest::of(key.as_bytes())]);
    assert_eq!(sign("2", &["--clear-tenants"]).0, 0);
    assert_eq!(call(&cosign).1["action"], "let whoever proves a guest ask the model");
    assert_eq!(send(), 0);
    assert!(released(&world, &guest).await.tenants.is_none());
}
