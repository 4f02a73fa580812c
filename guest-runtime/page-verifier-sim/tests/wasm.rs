// SPDX-License-Identifier: Apache-2.0
//! The WebAssembly modules give the answers of native code, byte for byte, and those are the expected ones.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod real;

use std::path::{Path, PathBuf};
use std::process::Command;

use page_verifier::{Anchors, BindingRequest, GuestRequest, ReleaseRequest, Request, Subject};
use page_verifier_sim::Simulated;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use types::{Base64, Hex32};
use vectors::case::{Case, Reason, Verifier, committed, directories};

/// Where `cargo xtask wasm` built the modules, on a machine that can run them.
fn modules(what: &str) -> Option<PathBuf> {
    let Some(directory) = std::env::var_os("CHRYSALIS_WASM") else {
        println!(
            "SKIPPED: {what} in WebAssembly (cargo xtask wasm builds the modules and names them by CHRYSALIS_WASM)"
        );
        return None;
    };
    if !Command::new("node").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: {what} in WebAssembly (there is no node)");
        return None;
    }
    Some(directory.into())
}

/// The module's answers, as text.
fn in_wasm(module: &Path, requests: &[String]) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("requests");
    let lines: Vec<String> = requests.iter().map(|request| json!(request).to_string()).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/decide.mjs");
    let output = Command::new("node").arg(script).arg(module).arg(file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(answers.len(), requests.len());
    answers
}

/// Demands that both decide alike, and gives the answers.
fn both(module: &Path, native: impl Fn(&[u8]) -> Vec<u8>, requests: &[String]) -> Vec<Value> {
    let answers = in_wasm(module, requests);
    for (request, answer) in requests.iter().zip(&answers) {
        let expected = String::from_utf8(native(request.as_bytes())).unwrap();
        assert_eq!(*answer, expected, "{}", &request[..request.len().min(400)]);
    }
    answers.iter().map(|answer| serde_json::from_str(answer).unwrap()).collect()
}

fn genuine(request: &[u8]) -> Vec<u8> {
    page_verifier::verify(&Anchors::genuine(), request)
}

fn reasons(answer: &Value) -> Vec<Reason> {
    let word = |reason: &Value, name: &str| reason[name].as_str().unwrap().to_owned();
    let all = answer["reasons"].as_array().unwrap().iter();
    all.map(|reason| Reason { code: word(reason, "code"), field: word(reason, "field") }).collect()
}

fn codes(answer: &Value) -> Vec<String> {
    reasons(answer).into_iter().map(|reason| reason.code).collect()
}

fn text(subject: Subject, at: u64) -> String {
    let request = Request { schema: Request::SCHEMA.to_owned(), at, subject };
    serde_json::to_string(&request).unwrap()
}

/// The request for a committed case, and the root that it trusts; `None` for checks that no page makes.
fn request(case: &Case, dir: &Path) -> Option<String> {
    let bytes = |name: &str| std::fs::read(dir.join(&case.inputs[name])).unwrap();
    let string = |name: &str| String::from_utf8(bytes(name)).unwrap();
    let secret = |name: &str| Hex32::new(bytes(name).try_into().unwrap());
    let at = OffsetDateTime::parse(&case.at, &Rfc3339).unwrap().unix_timestamp();
    let at = u64::try_from(at).unwrap();
    let (subject, root) = match case.verifier {
        Verifier::Appraise => {
            let guest = GuestRequest {
                evidence: string("evidence"),
                binding: BindingRequest::KeyRelease { challenge: secret("challenge"), exporter: secret("exporter") },
                collateral: vec![string("collateral")],
                policy: appraise::Policy::any_release(),
                trust: string("trust"),
                releases: vec![string("bundle")],
                rims: Vec::new(),
                ocsp: Vec::new(),
            };
            (Subject::Guest(Box::new(guest)), bytes("root"))
        }
        Verifier::Bundle => {
            (Subject::Release(ReleaseRequest { bundle: string("bundle"), trust: string("trust") }), Vec::new())
        }
        Verifier::History | Verifier::Witness => return None,
    };
    let simulated = Simulated { root: Base64::new(root).unwrap(), request: text(subject, at) };
    Some(serde_json::to_string(&simulated).unwrap())
}

#[test]
fn every_committed_attack_is_decided_in_wasm_as_natively() {
    let Some(directory) = modules("committed attacks") else { return };
    let cases: Vec<(Case, PathBuf)> =
        directories(&committed()).unwrap().into_iter().map(|dir| (Case::read(&dir).unwrap(), dir)).collect();
    let asked: Vec<(&Case, String)> =
        cases.iter().filter_map(|(case, dir)| Some((case, request(case, dir)?))).collect();
    let requests: Vec<String> = asked.iter().map(|(_, request)| request.clone()).collect();
    let answers = both(&directory.join("page_verifier_sim.wasm"), page_verifier_sim::verify, &requests);
    for ((case, _), answer) in asked.iter().zip(&answers) {
        assert_eq!(reasons(answer), case.expected, "{}: {answer}", case.title);
        assert_eq!(answer["accepted"], json!(case.expected.is_empty()), "{}", case.title);
        if case.verifier == Verifier::Appraise && case.expected.is_empty() {
            assert_eq!(
                (&answer["result"]["hardware"], &answer["result"]["bound"]),
                (&json!("simulated"), &json!(true))
            );
        }
    }
    let accepted = answers.iter().filter(|answer| answer["accepted"] == json!(true)).count();
    assert!(answers.len() >= 70 && (2..10).contains(&accepted), "{accepted} of {} accepted", answers.len());
}

/// What the module for pages is given by tests of simulated hardware, it refuses: it has no other root.
#[test]
fn the_module_for_pages_does_not_believe_a_simulator() {
    let Some(directory) = modules("simulated evidence") else { return };
    let dir = committed().join("00-accepted");
    let simulated = request(&Case::read(&dir).unwrap(), &dir).unwrap();
    let accepted =
        both(&directory.join("page_verifier_sim.wasm"), page_verifier_sim::verify, std::slice::from_ref(&simulated));
    assert_eq!(accepted[0]["accepted"], json!(true));
    let Simulated { request, .. } = serde_json::from_str(&simulated).unwrap();
    let odd =
        [String::new(), "{}".to_owned(), "\u{fffd}\n\u{10ffff}".to_owned(), simulated, request.replace("/v1", "/v0")];
    let requests: Vec<String> = std::iter::once(request).chain(odd).collect();
    let answers = both(&directory.join("page_verifier_wasm.wasm"), genuine, &requests);
    assert_eq!(codes(&answers[0]), ["root_untrusted"]);
    assert!(answers.iter().all(|answer| answer["accepted"] == json!(false)));
}
