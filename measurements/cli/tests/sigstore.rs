// SPDX-License-Identifier: Apache-2.0
//! Bundles that others made: the conformance suite of sigstore clients, and one of a public project.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Each case of the suite that must be refused, the code of the refusal, and its cause as the suite's README tells it.
const CAUSES: &[(&str, &str, &str)] = &[
    ("bundle-empty-certificate-chain", "bundle_certificate_chain_empty", "a chain without certificates"),
    ("bundle-invalid-base64-signature", "bundle_signature_encoding", "the signature is not base64"),
    ("bundle-negative-log-index", "bundle_log_index", "an index below zero"),
    ("bundle-with-root-cert", "bundle_certificate_chain_has_root", "the chain brings its own root"),
    ("checkpoint-bad-keyhint", "bundle_checkpoint_signature", "no signature by the log of the entry"),
    ("dsse-invalid-sig", "bundle_signature", "the envelope's signature does not verify"),
    ("dsse-mismatch-sig", "bundle_log_entry_mismatch", "the log holds another signature over the same payload"),
    ("inclusion-proof-corrupted-hash", "bundle_inclusion_proof", "one flipped bit in the proof"),
    ("integrated-time-in-future", "bundle_integrated_time", "logged when the certificate was not valid"),
    ("intoto-log-entry-mismatch", "bundle_log_entry_mismatch", "the entry is of another signature"),
    ("intoto-set-outside-signing-cert-validity", "bundle_integrated_time", "logged when the certificate was not valid"),
    ("invalid-ct-key", "bundle_certificate_transparency", "no trusted log of certificates signed for the certificate"),
    ("managed-key-no-key", "bundle_key_needed", "signed with a bare key, and none was given"),
    ("message-digest-mismatch", "bundle_message_digest", "the bundle repeats another digest than the artifact's"),
    ("rekor2-checkpoint-missing-log-signature", "bundle_checkpoint_unsigned", "a checkpoint without signature"),
    ("rekor2-checkpoint-missing-root-hash", "bundle_checkpoint_malformed", "a checkpoint without root"),
    ("rekor2-dsse-invalid-sig", "bundle_signature", "the envelope's signature does not verify"),
    ("rekor2-dsse-mismatch-sig", "bundle_log_entry_mismatch", "the log holds another signature"),
    ("rekor2-no-inclusion-proof", "bundle_inclusion_proof_missing", "an entry without proof"),
    ("rekor2-timestamp-outside-trust-root-tsa-validity", "bundle_timestamp_authority_not_valid", "stamped too late"),
    ("rekor2-timestamp-payload-mismatch", "bundle_timestamp_mismatch", "a timestamp of another signature"),
    ("rekor2-timestamp-untrusted-tsa-without-embedded-cert", "bundle_timestamp_not_trusted", "an unknown authority"),
    ("signature-mismatch", "bundle_signature", "the signature does not verify"),
    ("wrong-hashedrekord-artifact", "bundle_log_entry_artifact", "the entry is of another artifact"),
    ("wrong-hashedrekord-entry", "bundle_log_entry_artifact", "the entry is of another artifact"),
];

/// What `measure bundle verify` says: exit code and document.
fn verify(bundle: &Path, root: &Path, rest: &[&str]) -> (i32, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_measure"));
    command.args(["bundle", "verify", "--json", "--bundle"]).arg(bundle).arg("--trusted-root").arg(root).args(rest);
    let output = command.output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    let document = serde_json::from_str(stdout.trim()).unwrap_or_else(|_| panic!("{bundle:?}: {stdout} {errors}"));
    (output.status.code().unwrap(), document)
}

/// Runs a case directory as the suite's README says; `rest` comes on top.
fn run_case(suite: &Path, name: &str, rest: &[&str]) -> (i32, Value) {
    let case = suite.join(name);
    let or = |file: &str, default: PathBuf| Some(case.join(file)).filter(|path| path.exists()).unwrap_or(default);
    let text = |file: &str, default: &str| {
        fs::read_to_string(case.join(file)).map_or_else(|_| default.to_owned(), |text| text.trim().to_owned())
    };
    let root = or("trusted_root.json", suite.join("trusted_root_public_good.json"));
    let artifact = or("artifact", suite.join("a.txt")).display().to_string();
    let (key, identity, issuer) =
        (case.join("key.pub").display().to_string(), text("identity", IDENTITY), text("issuer", ISSUER));
    let mut words = vec!["--artifact", &artifact];
    if case.join("key.pub").exists() {
        words.extend(["--key", &key]);
    } else {
        words.extend(["--identity", &identity, "--issuer", &issuer]);
    }
    words.extend(rest);
    verify(&case.join("bundle.sigstore.json"), &root, &words)
}

/// The code of the one reason, which must be complete.
fn code(name: &str, document: &Value) -> String {
    let reasons = document["reasons"].as_array().unwrap_or_else(|| panic!("{name}: {document}"));
    assert_eq!(reasons.len(), 1, "{name}: {document}");
    let text = |field: &str| reasons[0][field].as_str().unwrap().to_owned();
    assert!(["field", "detail", "fix"].iter().all(|field| !text(field).is_empty()), "{name}: {document}");
    text("code")
}

#[test]
fn conformance_cases_are_accepted_or_refused_for_their_cause() {
    let Some(suite) = suite() else { return };
    let names: BTreeSet<_> = fs::read_dir(&suite)
        .unwrap()
        .map(|item| item.unwrap().path())
        .filter(|path| path.join("bundle.sigstore.json").is_file())
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert!(names.len() >= 30, "{} cases", names.len());
    let mut wrong = Vec::new();
    for name in &names {
        let (exit, document) = run_case(&suite, name, &[]);
        let Some(failing) = name.strip_suffix("_fail") else {
            if exit != 0 {
                wrong.push(format!("{name}: refused: {document}"));
            }
            continue;
        };
        match CAUSES.iter().find(|(case, ..)| *case == failing) {
            None => wrong.push(format!("{name}: no cause stands in the table; got {document}")),
            Some((_, expected, cause)) if exit != 2 || code(name, &document) != *expected => {
                wrong.push(format!("{name} ({cause}): exit {exit}, expected {expected}, got {document}"));
            }
            Some(_) => {}
        }
    }
    let missing = CAUSES.iter().filter(|(case, ..)| !names.contains(&format!("{case}_fail")));
    wrong.extend(missing.map(|(case, ..)| format!("{case}: stands in the table, not in the suite")));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Attack 62: the log's promise to include an entry is not a proof that it did.
#[test]
fn a_promise_without_proof_is_accepted_only_when_asked_for() {
    let Some(suite) = suite() else { return };
    let case = "happy-path-v0.1";
    let mut bundle: Value =
        serde_json::from_slice(&fs::read(suite.join(case).join("bundle.sigstore.json")).unwrap()).unwrap();
    let entry = bundle["verificationMaterial"]["tlogEntries"][0].as_object_mut().unwrap();
    entry.remove("inclusionProof").expect("the case has a proof");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("promise.json");
    fs::write(&path, bundle.to_string()).unwrap();
    let artifact = suite.join("a.txt").display().to_string();
    let root = suite.join("trusted_root_public_good.json");
    let words = ["--artifact", &artifact, "--identity", IDENTITY, "--issuer", ISSUER];
    let (exit, document) = verify(&path, &root, &words);
    assert_eq!((exit, code(case, &document).as_str()), (2, "bundle_inclusion_proof_missing"));
    let (exit, document) = verify(&path, &root, &[&words[..], &["--allow-promise"]].concat());
    assert_eq!((exit, &document["promise_only"]), (0, &Value::Bool(true)), "{document}");
    // Without promise and proof nothing helps.
    bundle["verificationMaterial"]["tlogEntries"][0].as_object_mut().unwrap().remove("inclusionPromise").unwrap();
    fs::write(&path, bundle.to_string()).unwrap();
    let (exit, document) = verify(&path, &root, &[&words[..], &["--allow-promise"]].concat());
    assert_eq!((exit, code(case, &document).as_str()), (2, "bundle_inclusion_proof_missing"));
    bundle["verificationMaterial"]["tlogEntries"] = Value::Array(vec![]);
    fs::write(&path, bundle.to_string()).unwrap();
    let (exit, document) = verify(&path, &root, &words);
    assert_eq!((exit, code(case, &document).as_str()), (2, "bundle_log_entry_missing"));
}

/// Attack 63: a bundle that GitHub Actions made for a public project, right and wrong signer.
#[test]
fn a_public_projects_bundle_names_its_signer() {
    let Some(suite) = suite() else { return };
    let bundle = suite.join("gh_kubewarden_v03.json");
    let root = suite.join("trusted_root_public_good.json");
    let check = |digest: &str, identity: &str, issuer: &str| {
        let digest = format!("sha256:{digest}");
        let (exit, document) =
            verify(&bundle, &root, &["--digest", &digest, "--identity", identity, "--issuer", issuer]);
        if exit == 0 { "accepted".to_owned() } else { code("kubewarden", &document) }
    };
    assert_eq!(check(KUBEWARDEN, KUBEWARDEN_IDENTITY, ISSUER), "accepted");
    let fork = KUBEWARDEN_IDENTITY.replace("kubewarden/kubewarden-controller", "kubewarden-fork/kubewarden-controller");
    assert_eq!(check(KUBEWARDEN, &fork, ISSUER), "bundle_identity_mismatch");
    let tag = KUBEWARDEN_IDENTITY.replace("v1.34.0", "v1.34.1");
    assert_eq!(check(KUBEWARDEN, &tag, ISSUER), "bundle_identity_mismatch");
    let prefix = KUBEWARDEN_IDENTITY.strip_suffix(".0").unwrap();
    assert_eq!(check(KUBEWARDEN, prefix, ISSUER), "bundle_identity_mismatch");
    let issuer = "https://token.actions.githubusercontent.com/";
    assert_eq!(check(KUBEWARDEN, KUBEWARDEN_IDENTITY, issuer), "bundle_issuer_mismatch");
    assert_eq!(check(&"0".repeat(64), KUBEWARDEN_IDENTITY, ISSUER), "bundle_artifact_mismatch");
    // Another instance's root knows neither of timestamp authority, certificate authority and log; the first is named.
    let github = suite.join("trusted_root_github.json");
    let digest = format!("sha256:{KUBEWARDEN}");
    let words = ["--digest", &digest, "--identity", KUBEWARDEN_IDENTITY, "--issuer", ISSUER];
    let (exit, document) = verify(&bundle, &github, &words);
    assert_eq!(exit, 2, "{document}");
    assert_eq!(code("other root", &document), "bundle_timestamp_not_trusted");
}

fn suite() -> Option<PathBuf> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors");
    let dir = std::env::var_os("CHRYSALIS_VECTORS").map_or_else(default, PathBuf::from).join("sigstore");
    if dir.is_dir() {
        return Some(dir);
    }
    println!("SKIPPED: sigstore bundles (no vectors)");
    None
}

const IDENTITY: &str = "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/.github/workflows/extremely-dangerous-oidc-beacon.yml@refs/heads/main";
const ISSUER: &str = "https://token.actions.githubusercontent.com";
const KUBEWARDEN: &str = "c811d58de79c92f03214e63aa339484e488d694ae8a6283b5f3f17a9faf50172";
const KUBEWARDEN_IDENTITY: &str =
    "https://github.com/kubewarden/kubewarden-controller/.github/workflows/release.yml@refs/tags/v1.34.0";
