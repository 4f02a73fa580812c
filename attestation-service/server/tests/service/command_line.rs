// SPDX-License-Identifier: Apache-2.0
//! The program as its operator calls it.

#[path = "../../../collateral/tests/fake/mod.rs"]
#[allow(dead_code, reason = "one of its modes is used here")]
mod fake;
use crate::world;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use types::Document as _;
use world::World;

/// Exit code and the JSON document of one call.
fn call(args: &[&str]) -> (i32, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_attestation-service")).args(args).arg("--json").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.lines().last().unwrap_or_default();
    (output.status.code().unwrap(), serde_json::from_str(last).unwrap_or(Value::Null))
}

fn codes(document: &Value) -> Vec<&str> {
    document["reasons"].as_array().unwrap().iter().map(|reason| reason["code"].as_str().unwrap()).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_store_is_made_filled_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let (store, key) = (dir.path().join("store"), dir.path().join("key"));
    let store = text(&store);
    let (code, made) = call(&["init", "--store", store]);
    assert_eq!((code, made["accepted"].as_bool()), (0, Some(true)));
    assert_eq!(call(&["identity", "--store", store]).1["spki_sha256"], made["spki_sha256"]);
    assert_eq!(call(&["init", "--store", store]).0, 1, "a store is never made twice");

    let (code, check) = call(&["check-config", "--store", store]);
    assert_eq!((code, codes(&check)), (2, vec!["release_unknown", "model_key_missing"]));

    let model = world::model().to_string();
    let import = |key: &Path| {
        call(&["keys", "import", "--store", store, "--model", &model, "--version", "1", "--key", text(key)])
    };
    std::fs::write(&key, b"short").unwrap();
    assert_eq!(import(&key).0, 1);
    std::fs::write(&key, hex::encode([7; 32])).unwrap();
    assert_eq!(import(&key).0, 0);
    let (code, again) = import(&key);
    assert_eq!((code, codes(&again)), (2, vec!["key_exists"]));
    assert_eq!(call(&["keys", "list", "--store", store]).1["keys"][0]["model"], model.as_str());

    let policy = dir.path().join("policy.json");
    std::fs::write(&policy, "{\"schema\":\"chrysalis/appraisal-policy/v1\",\"allow_debug\":true}").unwrap();
    let set = |policy: &Path| call(&["policy", "set", "--store", store, "--file", text(policy)]);
    let lint = |policy: &Path| call(&["policy", "lint", "--file", text(policy)]);
    assert_eq!(codes(&set(&policy).1), ["policy_malformed"]);
    let (code, found) = lint(&policy);
    assert_eq!(
        (code, codes(&found), &found["findings"][0]["pointer"]),
        (2, vec!["policy_malformed"], &"/allow_debug".into())
    );
    std::fs::write(&policy, "{\"schema\": \"chrysalis/appraisal-policy/v1\"}").unwrap();
    let (code, made) = set(&policy);
    assert_eq!((code, &made["warnings"][0]["code"]), (0, &"tcb_evaluation_unbounded".into()), "weak, and in force");
    let (code, found) = lint(&policy);
    assert_eq!((code, &found["warnings"]), (0, &made["warnings"]));
    let (code, schema) = call(&["policy", "schema"]);
    assert_eq!((code, &schema["title"]), (0, &"chrysalis/appraisal-policy/v1".into()));
    assert_eq!(call(&["policy", "show", "--store", store]).1["policy"]["platform"]["tcb"][0]["status"], "UpToDate");
    // Where no service runs, the program enters in the log what it changed.
    let (code, audit) = call(&["audit", "list", "--store", store]);
    let entries: Vec<_> = audit["entries"].as_array().unwrap().iter().map(|entry| &entry["entry"]["act"]).collect();
    assert_eq!((code, entries), (0, vec![&"key_imported".into(), &"policy_set".into()]));
}

#[test]
fn releases_are_verified_before_they_are_imported() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let store = text(&store);
    assert_eq!(call(&["init", "--store", store]).0, 0);
    let (bundle, trust) = world::write_release(dir.path());
    let import = |bundle: &Path| {
        call(&["releases", "import", "--store", store, "--bundle", text(bundle), "--trust", text(&trust)])
    };
    // The release is valid around another time than now: the refusal must say so.
    assert_eq!(codes(&import(&bundle).1), ["release_not_valid_now"]);
    let changed = dir.path().join("changed.json");
    std::fs::write(&changed, std::fs::read_to_string(&bundle).unwrap().replace("payload", "Payload")).unwrap();
    assert_eq!(codes(&import(&changed).1), ["release_bundle_malformed"]);
    assert_eq!(call(&["releases", "list", "--store", store]).1["releases"].as_array().unwrap().len(), 0);
}

#[test]
fn wrong_usage_has_its_own_code() {
    for args in [&["serve"][..], &["keys", "import", "--version", "0"], &["nonsense"], &["appraise", "--at", "today"]] {
        assert_eq!(call(args).0, 64, "{args:?}");
    }
    assert_eq!(call(&["--help"]).0, 0);
}

#[test]
fn a_port_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    assert_eq!(call(&["init", "--store", text(&store)]).0, 0);
    let platform = tdx_sim::SimulatedPlatform::generate(world::NOW).unwrap();
    let collateral = dir.path().join("collateral.json");
    std::fs::write(&collateral, platform.collateral(world::NOW, None).unwrap().to_json()).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, document) =
        call(&["serve", "--store", text(&store), "--listen", &address, "--collateral", text(&collateral)]);
    assert_eq!(code, 1);
    let error = document["error"].as_str().unwrap();
    assert!(error.contains(&address) && error.contains("--listen"), "{error}");
}

/// A source that may choose among evaluations is warned of, at every start.
#[test]
fn a_policy_without_a_minimum_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let (store, policy) = (dir.path().join("store"), dir.path().join("policy.json"));
    assert_eq!(call(&["init", "--store", text(&store)]).0, 0);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    // The program ends because the address is in use.
    let warned = |source: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attestation-service"));
        command.args(["serve", "--store", text(&store), "--listen", &address, "--collateral-dir", text(dir.path())]);
        let output = command.args(source).env("CHRYSALIS_LOG", "warn").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap().contains("tcb_evaluation_unbounded")
    };
    let source = ["--pccs", "http://127.0.0.1:1"];
    assert_eq!((warned(&source), warned(&[])), (true, false));
    let minimum = r#"{"schema":"chrysalis/appraisal-policy/v1","platform":{"min_tcb_evaluation_data_number":17}}"#;
    std::fs::write(&policy, minimum).unwrap();
    assert_eq!(call(&["policy", "set", "--store", text(&store), "--file", text(&policy)]).0, 0);
    assert!(!warned(&source));
}

/// Attack 70: the release binary does not believe the simulator, whatever it is given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_release_binary_refuses_simulated_evidence() {
    let world = World::start().await;
    let guest = world.guest().await;
    let evidence = guest.evidence_for(&[1; 32], &[2; 32], world::key_pair().public());
    let write = |name: &str, bytes: &[u8]| {
        let path = world.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let evidence = write("evidence.json", &evidence.to_canonical().unwrap());
    let collateral =
        write("collateral.json", world.platform.collateral(world::NOW, None).unwrap().to_json().as_bytes());
    let (bundle, trust) = world::write_release(world.dir.path());
    let at = "2027-01-15T08:00:00Z";
    let (code, document) = call(&[
        "appraise",
        "--evidence",
        text(&evidence),
        "--collateral",
        text(&collateral),
        "--at",
        at,
        "--release",
        text(&bundle),
        "--trust",
        text(&trust),
    ]);
    assert_eq!((code, codes(&document)), (2, vec!["root_untrusted"]));
    assert_eq!(document["hardware"], "tdx");
}

/// A refusal says, too, which hardware is believed: a simulator's must not be taken for a real one.
#[test]
fn a_refusal_names_the_hardware() {
    let dir = tempfile::tempdir().unwrap();
    let collateral = dir.path().join("collateral.json");
    std::fs::write(&collateral, b"{}").unwrap();
    let args =
        ["appraise", "--quote", text(&collateral), "--collateral", text(&collateral), "--at", "2026-07-20T00:00:00Z"];
    let (code, document) = call(&args);
    assert_eq!((code, codes(&document)), (2, vec!["collateral_malformed"]));
    assert_eq!(document["hardware"], "tdx");
}

/// Attack 52: what an operator revokes gets no key from the running service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_and_platforms_are_revoked_beside_a_running_service() {
    let world = World::start().await;
    let guest = world.guest().await;
    assert!(world.ask(&guest).await.is_ok());
    let store = world.store_dir();
    let (code, audit) = call(&["audit", "list", "--store", text(&store)]);
    assert_eq!(code, 0);
    let newest = audit["entries"].as_array().unwrap().last().unwrap();
    let platform = newest["entry"]["platform"].as_str().unwrap();
    assert_eq!(call(&["platforms", "revoke", "--store", text(&store), "--platform", platform]).0, 0);
    assert_eq!(world.refusal(&guest).await[0].0, "platform_revoked");

    let world = World::start().await;
    let guest = world.guest().await;
    let (store, model) = (world.store_dir(), world::model().to_string());
    assert_eq!(call(&["keys", "revoke", "--store", text(&store), "--model", &model]).0, 0);
    assert_eq!(world.refusal(&guest).await[0].0, "model_revoked");
}

/// Attack 55: the store as a whole is an older copy; only a checkpoint kept elsewhere shows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_does_not_start_on_a_store_older_than_a_known_checkpoint() {
    let mut world = World::stopped(release::Hardware::Simulated);
    let old = world.dir.path().join("old");
    assert!(Command::new("cp").arg("-a").arg(world.store_dir()).arg(&old).status().unwrap().success());
    world.launch().await;
    let guest = world.guest().await;
    assert!(world.ask(&guest).await.is_ok());
    let known = world.dir.path().join("known");
    std::fs::copy(world.store_dir().join("audit/checkpoint"), &known).unwrap();
    let collateral = world.dir.path().join("collateral.json");
    std::fs::write(&collateral, world.platform.collateral(world::NOW, None).unwrap().to_json()).unwrap();
    // The address is taken: a store that is accepted ends there, with another code.
    let address = world.service.as_ref().unwrap().address.to_string();
    let serve = ["serve", "--store", text(&old), "--listen", &address, "--collateral", text(&collateral)];
    assert_eq!(call(&serve).0, 1);
    let (code, document) = call(&[&serve[..], &["--checkpoint", text(&known)]].concat());
    assert_eq!((code, codes(&document)), (2, vec!["audit_log"]));
}

/// The release binary believes Intel alone: collateral of a simulated platform is fetched, judged and not kept.
#[test]
fn collateral_is_fetched_judged_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("collateral");
    let platform = tdx_sim::SimulatedPlatform::generate(world::NOW).unwrap();
    let pccs = fake::Pccs::start(platform.collateral(world::NOW, None).unwrap());
    let common = ["collateral", "fetch", "--collateral-dir", text(&kept), "--pccs"];
    let fetch = |url: &str, more: &[&str]| call(&[&common[..], &[url], more].concat());
    let (code, document) = fetch(&pccs.url(), &["--fmspc", "53494d000000"]);
    assert_eq!((code, codes(&document)), (2, vec!["root_untrusted"]));
    assert_eq!(document["hardware"], "tdx");
    pccs.set(fake::Mode::Status(500));
    let (code, document) = fetch(&pccs.url(), &["--fmspc", "53494d000000"]);
    assert_eq!((code, codes(&document)), (2, vec!["collateral_source"]));
    assert_eq!(fetch(&pccs.url(), &[]).0, 1, "no kind of platform is named");
    assert_eq!(fetch("ftp://x", &["--fmspc", "53494d000000"]).0, 1);
    assert_eq!(fetch(&pccs.url(), &["--fmspc", "../x"]).0, 64);
    let (code, document) = call(&["collateral", "status", "--collateral-dir", text(&kept)]);
    assert_eq!((code, document["collateral"].as_array().map(Vec::len)), (0, Some(0)));
    // Somebody puts the simulator's collateral there by hand.
    std::fs::write(kept.join("53494d000000.json"), platform.collateral(world::NOW, None).unwrap().to_json()).unwrap();
    let (code, document) = call(&["collateral", "status", "--collateral-dir", text(&kept)]);
    assert_eq!((code, codes(&document)), (2, vec!["root_untrusted"]));
    assert_eq!(document["collateral"][0]["state"], "refused");
}

#[test]
fn real_quotes_are_judged_from_files() {
    let dir = std::env::var_os("CHRYSALIS_VECTORS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"), PathBuf::from);
    if !dir.is_dir() {
        println!("SKIPPED: real TDX quotes ({} is absent)", dir.display());
        return;
    }
    let file = |name: &str| text(&dir.join(name)).to_owned();
    let quote = file("tdx/gtg_v4_gcp_cos113.dat");
    let collateral = file("tdx/sol_00806f05_2025-07.collateral.json");
    let log = file("ccel/gtg_gcp_cos113_ccel.bin");
    let common = ["appraise", "--collateral", &collateral, "--at", "2025-07-20T00:00:00Z"];
    let (code, document) = call(&[&common[..], &["--quote", &quote, "--event-log", &log]].concat());
    assert_eq!((code, &document["scope"], &document["measurements"]), (0, &"platform".into(), &"not_appraised".into()));
    assert_eq!(document["tcb"]["status"], "UpToDate");
    assert_eq!(document["padding_bytes"], 3065);

    // The same bytes in hexadecimal, and a configuration that is not this guest's.
    let temporary = tempfile::tempdir().unwrap();
    let written = temporary.path().join("quote.hex");
    std::fs::write(&written, hex::encode(std::fs::read(&quote).unwrap())).unwrap();
    assert_eq!(call(&[&common[..], &["--quote", text(&written)]].concat()).0, 0);
    let config = temporary.path().join("config.json");
    std::fs::write(&config, b"{}").unwrap();
    let (code, document) = call(&[&common[..], &["--quote", text(&written), "--config", text(&config)]].concat());
    assert_eq!((code, codes(&document)), (2, vec!["config_malformed", "config_digest_mismatch"]));

    let late = ["appraise", "--collateral", &collateral, "--at", "2026-07-20T00:00:00Z", "--quote", &quote];
    let (code, document) = call(&late);
    assert_eq!((code, codes(&document)), (2, vec!["collateral_expired"]));
}

/// More connections than the system lets a program open are refused at the start, with what would fit.
#[test]
fn connections_must_fit_in_the_limit_of_open_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    assert_eq!(call(&["init", "--store", text(&store)]).0, 0);
    let program = env!("CARGO_BIN_EXE_attestation-service");
    let script = format!(
        "ulimit -n 512 && exec {program} serve --store {} --listen 127.0.0.1:0 --collateral none.json --connections 1000",
        text(&store)
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("1000 connections need 1128 open files") && said.contains("--connections 384"), "{said}");
}
