// SPDX-License-Identifier: Apache-2.0
//! Owners of models command the service over the wire; nobody else can.

use crate::world;

use std::process::Command;

use key_release::{AdmitSuccessor, ImportKey, OwnerAction, OwnerCommand, Revoke, SignedOwnerCommand, owner_public_key};
use release_client::{ClientError, OwnerAnswer};
use store::{AuditEntry, OpenOptions, Store};
use types::{Base64, Blake3Digest, Document as _, ModelId, Sha256Digest};
use world::{World, model};

const KEY: [u8; 32] = [0x11; 32];

fn beside(world: &World) -> Store {
    Store::open_with(&world.store_dir(), &OpenOptions { sequencer: false, ..OpenOptions::default() }).unwrap()
}

fn command(world: &World, sequence: u64, action: OwnerAction) -> OwnerCommand {
    OwnerCommand { schema: OwnerCommand::SCHEMA.into(), service: world.pin, model: model(), sequence, action }
}

fn demand(number: u32) -> OwnerAction {
    let text = format!(
        "{{\"schema\":\"chrysalis/appraisal-policy/v1\",\"platform\":{{\"min_tcb_evaluation_data_number\":{number}}}}}"
    );
    OwnerAction::SetPolicy(Base64::new(text.into_bytes()).unwrap())
}

async fn send(world: &World, command: &OwnerCommand, key: &[u8; 32]) -> Result<OwnerAnswer, String> {
    send_bytes(world, command.sign(key).unwrap().to_canonical().unwrap()).await
}

async fn send_bytes(world: &World, bytes: Vec<u8>) -> Result<OwnerAnswer, String> {
    match world.connect().await.owner_command(bytes).await {
        Ok(answer) => Ok(answer),
        Err(ClientError::Refused(reasons)) => Err(reasons[0].code.clone()),
        Err(other) => panic!("{other}"),
    }
}

fn refused(code: &str) -> Result<OwnerAnswer, String> {
    Err(code.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_narrows_what_the_service_accepts() {
    let world = World::start().await;
    let guest = world.guest().await;
    let store = beside(&world);
    store.register_owner(&model(), &owner_public_key(&KEY)).unwrap();
    assert!(world.ask(&guest).await.is_ok(), "an owner who demands nothing changes nothing");
    let answer = send(&world, &command(&world, 1, demand(99)), &KEY).await.unwrap();
    assert_eq!((answer.model, answer.sequence), (model(), 1));
    assert_eq!(
        world.refusal(&guest).await,
        [("collateral_rollback".into(), "collateral.tcb_evaluation_data_number".into())]
    );
    send(&world, &command(&world, 2, demand(1)), &KEY).await.unwrap();
    assert!(world.ask(&guest).await.is_ok());
    // The owner's policy switches nothing of the service's own off.
    store
        .set_policy(
            "appraisal",
            br#"{"schema":"chrysalis/appraisal-policy/v1","platform":{"min_tcb_evaluation_data_number":98}}"#,
        )
        .unwrap();
    assert_eq!(world.refusal(&guest).await[0].0, "collateral_rollback");
    // Each command stands in the log, by the digest of what was sent.
    let sent = Sha256Digest::of(&command(&world, 1, demand(99)).sign(&KEY).unwrap().to_canonical().unwrap());
    let mut commands = Vec::new();
    let listed = store.verify_audit_with(|index, entry| {
        if let AuditEntry::Owner(entry) = entry {
            commands.push((index, entry.sequence, entry.command));
        }
    });
    listed.unwrap();
    assert_eq!((commands.len(), commands[0]), (2, (answer.audit_index, 1, sent)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_others_and_old_ones_are_refused() {
    let world = World::start().await;
    let guest = world.guest().await;
    let first = command(&world, 5, demand(1));
    assert_eq!(send(&world, &first, &KEY).await, refused("owner_unknown"));
    beside(&world).register_owner(&model(), &owner_public_key(&KEY)).unwrap();
    assert_eq!(send(&world, &first, &[0x22; 32]).await, refused("owner_signature"));
    assert!(send(&world, &first, &KEY).await.is_ok());
    for old in [5, 4, 1] {
        let revoke = command(&world, old, OwnerAction::Revoke(Revoke {}));
        assert_eq!(send(&world, &revoke, &KEY).await, refused("owner_sequence"), "{old}");
    }
    let elsewhere = OwnerCommand { service: Sha256Digest::of(b"other"), ..command(&world, 6, demand(99)) };
    assert_eq!(send(&world, &elsewhere, &KEY).await, refused("owner_service"));
    let other = ModelId::new("model", "1", Blake3Digest::of(b"another")).unwrap();
    let others = OwnerCommand { model: other, ..command(&world, 6, demand(99)) };
    assert_eq!(send(&world, &others, &KEY).await, refused("owner_unknown"));
    let broken = OwnerAction::SetPolicy(Base64::new(b"{\"schema\":\"x\"}".to_vec()).unwrap());
    assert_eq!(send(&world, &command(&world, 6, broken), &KEY).await, refused("policy_malformed"));
    assert_eq!(send_bytes(&world, b"{}".to_vec()).await, refused("request_malformed"));
    assert!(world.ask(&guest).await.is_ok(), "nothing of that counts");
    // Of racing commands with one sequence one is carried out.
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..8 {
        let bytes = command(&world, 7, demand(number)).sign(&KEY).unwrap().to_canonical().unwrap();
        let mut connection = world.connect().await;
        tasks.spawn(async move { connection.owner_command(bytes).await.is_ok() });
    }
    assert_eq!(tasks.join_all().await.into_iter().filter(|done| *done).count(), 1);
    let mut entered = Vec::new();
    let listed = beside(&world).verify_audit_with(|_, entry| {
        if let AuditEntry::Owner(entry) = entry {
            entered.push(entry.sequence);
        }
    });
    listed.unwrap();
    assert_eq!(entered, [5, 7], "what was refused is not entered");
    send(&world, &command(&world, 8, OwnerAction::Revoke(Revoke {})), &KEY).await.unwrap();
    assert_eq!(world.refusal(&guest).await, [("model_revoked".into(), "model".into())]);
}

/// Rules of an owner's own narrow what the service accepts, and say why by the author's word alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_of_an_owner_count_from_the_next_request_on() {
    let world = World::start().await;
    let guest = world.guest().await;
    beside(&world).register_owner(&model(), &owner_public_key(&KEY)).unwrap();
    let rules = |source: &str| {
        let rules = serde_json::json!({ "engine": "cedar-4", "claims": "chrysalis/claims/v1", "source": source });
        let policy = serde_json::json!({ "schema": "chrysalis/appraisal-policy/v1", "rules": rules });
        OwnerAction::SetPolicy(Base64::new(policy.to_string().into_bytes()).unwrap())
    };
    let set = |sequence, source: &str| {
        let command = command(&world, sequence, rules(source));
        let world = &world;
        async move { send(world, &command, &KEY).await.map(|_| ()) }
    };
    let permit = "permit(principal, action == Action::\"key-release\", resource);";
    set(1, permit).await.unwrap();
    assert!(world.ask(&guest).await.is_ok());
    set(
        2,
        &format!(
            "{permit} @reason(\"small\") forbid(principal, action, resource) when {{ context.machine.vcpus < 4 }};"
        ),
    )
    .await
    .unwrap();
    assert_eq!(world.refusal(&guest).await, [("rule_denied".into(), "rules.small".into())]);
    // Rules are not asked where something else refuses, and can't let anything pass.
    let other = world.guest_with(|_| (), |registers| registers.rtmr_1 = types::Sha384Digest::of(b"other")).await;
    assert_eq!(world.refusal(&other).await[0].0, "register_mismatch");
    set(3, permit).await.unwrap();
    assert_eq!(world.refusal(&other).await[0].0, "register_mismatch");
    set(4, &format!("{permit} forbid(principal, action, resource) when {{ context.now + 9223372036854775807 > 0 }};"))
        .await
        .unwrap();
    assert_eq!(world.refusal(&guest).await, [("rule_failed".into(), "rules".into())]);
    // What can't be compiled never counts.
    for bad in ["permit", "permit(principal, action, resource) when { context.nothing };", &"(".repeat(9000)] {
        assert_eq!(set(5, bad).await.unwrap_err(), "policy_malformed");
    }
    assert_eq!(world.refusal(&guest).await[0].0, "rule_failed");
    set(5, permit).await.unwrap();
    assert!(world.ask(&guest).await.is_ok());
}

/// The whole way with the program: a key, a registration, a signed command, and its sending.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_works_from_files() {
    let world = World::start().await;
    let guest = world.guest().await;
    let call = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_attestation-service")).args(args).arg("--json").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let document: serde_json::Value = serde_json::from_str(text.lines().last().unwrap_or("null")).unwrap();
        (output.status.code().unwrap(), document)
    };
    let path = |name: &str| world.dir.path().join(name).to_str().unwrap().to_owned();
    let (key, signed, policy, store) = (path("owner.key"), path("command.json"), path("policy.json"), path("store"));
    let (model, pin) = (model().to_string(), world.pin.to_string());
    let (code, made) = call(&["owner", "keygen", "--out", &key]);
    assert_eq!(code, 0);
    assert_eq!(call(&["owner", "keygen", "--out", &key]).0, 1, "a key is never overwritten");
    let owner = made["owner"].as_str().unwrap().to_owned();
    let register = ["owner", "register", "--store", &store, "--model", &model, "--owner", &owner];
    assert_eq!(call(&register).0, 0);
    assert_eq!(call(&register).1["reasons"][0]["code"], "owner_exists");
    let sign = ["owner", "sign", "--key", &key, "--service", &pin, "--model", &model, "--out", &signed, "--sequence"];
    std::fs::write(&policy, b"{}").unwrap();
    assert_eq!(call(&[&sign[..], &["1", "--set-policy", &policy]].concat()).0, 2);
    assert_eq!(call(&[&sign[..], &["1"]].concat()).0, 64, "one action is needed");
    assert_eq!(call(&[&sign[..], &["1", "--revoke"]].concat()).0, 0);
    let address = world.service.as_ref().unwrap().address.to_string();
    let send = ["owner", "send", "--service", &address, "--pin", &pin, "--command", &signed];
    let (code, sent) = call(&send);
    assert_eq!((code, sent["sequence"].as_u64()), (0, Some(1)));
    assert_eq!(call(&send).1["reasons"][0]["code"], "owner_sequence");
    assert_eq!(world.refusal(&guest).await[0].0, "model_revoked");
}

/// A policy that lists these releases alone.
fn releases(listed: &[Sha256Digest]) -> OwnerAction {
    OwnerAction::SetPolicy(Base64::new(policy_of(listed)).unwrap())
}

fn policy_of(listed: &[Sha256Digest]) -> Vec<u8> {
    serde_json::json!({ "schema": "chrysalis/appraisal-policy/v1", "releases": listed }).to_string().into_bytes()
}

/// Imports another release, as its operator would; it follows `predecessor`.
fn import(world: &World, commit: &str, predecessor: Option<Sha256Digest>) -> Sha256Digest {
    import_until(world, commit, predecessor, 2 * world::NOW)
}

/// [`import`] of one that is valid until `not_after`.
fn import_until(world: &World, commit: &str, predecessor: Option<Sha256Digest>, not_after: u64) -> Sha256Digest {
    let mut statement = world::statement(release::Hardware::Simulated);
    statement.predicate.validity.not_after = not_after;
    statement.predicate.source_commit = commit.repeat(40);
    statement.predicate.predecessor = predecessor;
    let (bundle, trust) = sample_release::publish(&statement, world::NOW);
    let verified = release::VerifiedRelease::verify(&bundle, &trust, world::NOW).unwrap();
    let store = beside(world);
    store.set_policy(&format!("release-trust:{}", verified.digest()), &trust.to_canonical().unwrap()).unwrap();
    store.import_release(&bundle, &verified).unwrap();
    *verified.digest()
}

/// A successor counts as listed where its statement names the listed one, and only for this owner's policy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_admits_the_successor_of_a_release() {
    let world = World::start().await;
    let guest = world.guest().await;
    let store = beside(&world);
    store.register_owner(&model(), &owner_public_key(&KEY)).unwrap();
    let (first, next, stranger) = (world.release, import(&world, "1", Some(world.release)), import(&world, "2", None));
    let later = import(&world, "3", Some(next));
    let admit = |predecessor, successor| OwnerAction::AdmitSuccessor(AdmitSuccessor { predecessor, successor });
    assert_eq!(
        send(&world, &command(&world, 1, admit(first, next)), &KEY).await,
        refused("owner_successor"),
        "no policy"
    );
    send(&world, &command(&world, 1, releases(&[first])), &KEY).await.unwrap();
    assert!(world.ask(&guest).await.is_ok());
    // The image is the same: what decides is which releases may be used.
    store.revoke_release(&first).unwrap();
    assert!(world.ask(&guest).await.is_err());
    let unknown = Sha256Digest::of(b"not imported");
    for (why, predecessor, successor) in [
        ("the policy does not list it", stranger, next),
        ("not imported", first, unknown),
        ("names no predecessor", first, stranger),
        ("names another predecessor", first, later),
        ("not admitted yet", next, later),
    ] {
        let sent = send(&world, &command(&world, 2, admit(predecessor, successor)), &KEY).await;
        assert_eq!(sent, refused("owner_successor"), "{why}");
    }
    assert!(world.ask(&guest).await.is_err(), "nothing of that counts");
    send(&world, &command(&world, 2, admit(first, next)), &KEY).await.unwrap();
    assert!(world.ask(&guest).await.is_ok(), "from the next request on");
    // Within what the service accepts: its own policy, and its revocations.
    store.set_policy("appraisal", &policy_of(&[first, stranger])).unwrap();
    assert!(world.ask(&guest).await.is_err());
    store.set_policy("appraisal", br#"{"schema":"chrysalis/appraisal-policy/v1"}"#).unwrap();
    // A new policy says everything: what was admitted to the one before is gone, and is admitted anew.
    send(&world, &command(&world, 3, releases(&[first])), &KEY).await.unwrap();
    assert!(world.ask(&guest).await.is_err());
    send(&world, &command(&world, 4, admit(first, next)), &KEY).await.unwrap();
    assert!(world.ask(&guest).await.is_ok());
    store.revoke_release(&next).unwrap();
    assert!(world.ask(&guest).await.is_err());
    // The successor of a successor, in a chain of admissions.
    send(&world, &command(&world, 5, admit(next, later)), &KEY).await.unwrap();
    assert!(world.ask(&guest).await.is_ok());
    let entries = std::sync::Mutex::new(0);
    store
        .verify_audit_with(|_, entry| *entries.lock().unwrap() += u32::from(matches!(entry, AuditEntry::Owner(_))))
        .unwrap();
    assert_eq!(*entries.lock().unwrap(), 5, "one for each that was carried out");
}

/// A chain of admissions: the time of the release in the middle ends, and the service's own policy lists another part of
/// it than the owner's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_successors_holds_when_one_of_them_ends() {
    let world = World::start().await;
    let guest = world.guest().await;
    let store = beside(&world);
    store.register_owner(&model(), &owner_public_key(&KEY)).unwrap();
    let first = world.release;
    let next = import_until(&world, "1", Some(first), world::NOW + 100);
    let later = import(&world, "3", Some(next));
    let admit = |predecessor, successor| OwnerAction::AdmitSuccessor(AdmitSuccessor { predecessor, successor });
    // An owner who lists nothing has nothing to admit to, whatever the service lists.
    send(&world, &command(&world, 1, OwnerAction::SetPolicy(Base64::new(ANY.to_vec()).unwrap())), &KEY).await.unwrap();
    store.set_policy("appraisal", &policy_of(&[first])).unwrap();
    assert_eq!(
        send(&world, &command(&world, 2, admit(first, next)), &KEY).await,
        refused("owner_successor"),
        "it would change nothing"
    );
    // What counts is what the owner lists: the service may list the successor alone.
    send(&world, &command(&world, 2, releases(&[first])), &KEY).await.unwrap();
    store.set_policy("appraisal", &policy_of(&[next])).unwrap();
    assert!(world.ask(&guest).await.is_err());
    send(&world, &command(&world, 3, admit(first, next)), &KEY).await.unwrap();
    assert!(world.ask(&guest).await.is_ok());
    store.set_policy("appraisal", &policy_of(&[later])).unwrap();
    send(&world, &command(&world, 4, admit(next, later)), &KEY).await.unwrap();
    assert!(world.ask(&guest).await.is_ok());
    // The one in the middle is not used any more, and what follows it is.
    world.clock.store(world::NOW + 200, std::sync::atomic::Ordering::SeqCst);
    let guest = world.guest().await;
    assert!(world.ask(&guest).await.is_ok(), "{:?}", world.refusal(&guest).await);
    store.set_policy("appraisal", &policy_of(&[next])).unwrap();
    assert!(world.ask(&guest).await.is_err());
}

const ANY: &[u8] = br#"{"schema":"chrysalis/appraisal-policy/v1"}"#;

/// Two of three keys, from files, and a model's key that nobody in between sees.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_keys_of_an_owner_import_a_key_from_files() {
    let world = World::start().await;
    let guest = world.guest().await;
    let call = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_attestation-service")).args(args).arg("--json").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let document: serde_json::Value = serde_json::from_str(text.lines().last().unwrap_or("null")).unwrap();
        (output.status.code().unwrap(), document)
    };
    let path = |name: &str| world.dir.path().join(name).to_str().unwrap().to_owned();
    let (store, signed, twice, keys) = (path("store"), path("command"), path("twice"), path("service.json"));
    let (model_name, pin) = (model().to_string(), world.pin.to_string());
    let address = world.service.as_ref().unwrap().address.to_string();
    let owners: Vec<_> = ["a", "b", "c"]
        .map(|name| call(&["owner", "keygen", "--out", &path(name)]).1["owner"].as_str().unwrap().to_owned())
        .into();
    let register = ["owner", "register", "--store", &store, "--model", &model_name];
    let all = ["--owner", &owners[0], "--owner", &owners[1], "--owner", &owners[2], "--threshold"];
    assert_eq!(call(&[&register[..], &all, &["4"]].concat()).0, 1, "four of three");
    assert_eq!(call(&[&register[..], &all, &["2"]].concat()).0, 0);

    let fetch = |pin: &str| call(&["owner", "service-keys", "--service", &address, "--pin", pin, "--out", &keys]).0;
    assert_eq!(fetch(&Sha256Digest::of(b"other").to_string()), 1, "another service's pin");
    assert_eq!(fetch(&pin), 0);
    let new_key = [0x77; 32];
    std::fs::write(path("model.key"), hex::encode(new_key)).unwrap();
    let sign = |version: &str, sequence: &str, pin: &str| {
        let key = path("a");
        let model_key = path("model.key");
        let to = ["owner", "sign", "--key", &key, "--service", pin, "--model", &model_name, "--sequence", sequence];
        let what = ["--import-key", &model_key, "--key-version", version, "--service-keys", &keys, "--out", &signed];
        call(&[&to[..], &what].concat()).0
    };
    assert_eq!(sign("8", "1", &Sha256Digest::of(b"other").to_string()), 2, "keys that this pin did not sign");
    assert_eq!(sign("8", "1", &pin), 0);
    let sent = std::fs::read_to_string(&signed).unwrap();
    assert!(!sent.contains(&hex::encode(new_key)) && !sent.contains("d3d3d3"), "sealed");
    let send = |file: &str| {
        let (code, document) = call(&["owner", "send", "--service", &address, "--pin", &pin, "--command", file]);
        (code, document["reasons"][0]["code"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(send(&signed), (2, "owner_quorum".into()), "one of two");
    let cosign_as = |key: &str, yes: &[&str]| {
        let key = path(key);
        let named = ["--owner", &owners[0], "--owner", &owners[1], "--owner", &owners[2]];
        let what = ["owner", "cosign", "--key", &key, "--command", &signed, "--out", &twice];
        call(&[&what[..], &named, yes].concat())
    };
    // First it is shown, and then signed by whoever read it.
    let cosign = |key: &str| {
        let (code, shown) = cosign_as(key, &[]);
        assert_eq!((code, shown["signed"].as_bool()), (0, Some(false)), "{shown}");
        cosign_as(key, &["--yes", shown["digest"].as_str().unwrap()])
    };
    let (code, shown) = cosign_as("c", &[]);
    assert!(shown["action"].as_str().unwrap().starts_with("import version 8 of the model's key (sealed, SHA-256 "));
    assert_eq!((code, shown["signatures"].as_u64(), std::path::Path::new(&twice).exists()), (0, Some(1), false));
    let other = Sha256Digest::of(b"other").to_string();
    assert_eq!(cosign_as("c", &["--yes", &other]).1["reasons"][0]["code"], "owner_command_digest");
    assert_eq!(cosign("a").1["reasons"][0]["code"], "owner_signature", "one key twice");
    assert!(!std::path::Path::new(&twice).exists());
    let strangers =
        ["owner", "cosign", "--key", &path("c"), "--command", &signed, "--out", &twice, "--owner", &owners[1]];
    assert_eq!(
        call(&strangers).1["reasons"][0]["code"],
        "owner_signature",
        "the first signature is none of these keys'"
    );
    let (code, signed_twice) = cosign("c");
    assert_eq!((code, signed_twice["signatures"].as_u64()), (0, Some(2)));
    assert_eq!(send(&twice), (0, String::new()));
    let released = world.ask(&guest).await.map_err(|error| error.to_string()).unwrap();
    assert_eq!((released.key_version, *released.key), (8, new_key));
    assert_eq!(send(&twice), (2, "owner_sequence".into()), "it is good once");
    // The same version again, with the next sequence; and one that was sealed for another version.
    assert_eq!((sign("8", "2", &pin), cosign("b").0), (0, 0));
    assert_eq!(send(&twice), (2, "key_exists".into()));
    let bytes = std::fs::read(&twice).unwrap();
    let inner = SignedOwnerCommand::from_canonical(&bytes).unwrap().unverified().unwrap();
    let OwnerAction::ImportKey(import) = inner.action.clone() else { panic!("{inner:?}") };
    let other = OwnerCommand { action: OwnerAction::ImportKey(ImportKey { version: 9, ..import }), ..inner };
    let seed = |name: &str| <[u8; 32]>::try_from(hex::decode(std::fs::read(path(name)).unwrap()).unwrap()).unwrap();
    let mut other = other.sign(&seed("b")).unwrap();
    other.cosign(&seed("c"));
    assert_eq!(send_bytes(&world, other.to_canonical().unwrap()).await, refused("owner_key_sealed"));
}

/// Of an image that was published twice, the service's rules and the owner's list speak of the same release.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_the_service_s_rules_forbid_is_not_taken_by_an_owner_s_list() {
    let world = World::start().await;
    let guest = world.guest().await;
    let store = beside(&world);
    store.register_owner(&model(), &owner_public_key(&KEY)).unwrap();
    let twins = [world.release, import(&world, "3", None)];
    for (turn, forbidden) in twins.into_iter().enumerate() {
        let source = format!(
            "permit(principal, action, resource); forbid(principal, action, resource) when {{ context.release.digest == \"{forbidden}\" }};"
        );
        let rules = serde_json::json!({ "engine": "cedar-4", "claims": "chrysalis/claims/v1", "source": source });
        let policy = serde_json::json!({ "schema": "chrysalis/appraisal-policy/v1", "rules": rules });
        store.set_policy("appraisal", policy.to_string().as_bytes()).unwrap();
        let sequence = 2 * u64::try_from(turn).unwrap() + 1;
        send(&world, &command(&world, sequence, releases(&[forbidden])), &KEY).await.unwrap();
        assert_eq!(world.refusal(&guest).await, [("rule_denied".into(), "rules".into())]);
        let other = twins[1 - turn];
        send(&world, &command(&world, sequence + 1, releases(&[other])), &KEY).await.unwrap();
        assert!(world.ask(&guest).await.is_ok(), "the other one is accepted by both");
    }
}
