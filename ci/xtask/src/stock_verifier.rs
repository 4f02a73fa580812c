// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask stock-verifier`: a bundle made by `measure release` must be accepted by npm's `@sigstore/verify`, a
//! verifier that is not ours, and refused when any part of it was changed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::{process, programs, workspace};

/// One bundle, and what the verifier must say: the code of its refusal, or none.
struct Case {
    name: &'static str,
    bundle: Value,
    /// Whether the caller trusts another key under the signer's name.
    other_key: bool,
    refused: Option<&'static str>,
}

/// Publishes three releases in a new log, and has the stock verifier judge the second and changed copies of it.
pub(crate) fn run() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    scene.keys()?;
    let [_, second, _] = ["first", "second", "third"].map(|name| scene.publish(name));
    let published = second?;
    let hint = text(&published, "/verificationMaterial/publicKey/hint")?;
    let cases = cases(&published)?;
    let mut wrong = Vec::new();
    for case in &cases {
        let said = scene.verify(case, &hint)?;
        let code = said.get("code").and_then(Value::as_str);
        let message = said.get("message").and_then(Value::as_str).unwrap_or_default();
        let as_expected = code == case.refused && said.get("accepted") == Some(&json!(case.refused.is_none()));
        let verdict = code.map_or_else(|| "accepted".to_owned(), |code| format!("refused: {code} ({message})"));
        println!("{} {:<44} {verdict}", if as_expected { "ok   " } else { "WRONG" }, case.name);
        if !as_expected {
            wrong.push(case.name);
        }
    }
    ensure!(wrong.is_empty(), "the stock verifier decided otherwise than expected: {}", wrong.join(", "));
    println!("npm @sigstore/verify accepts our bundle and refuses {} changed ones", cases.len() - 1);
    Ok(())
}

fn cases(published: &Value) -> anyhow::Result<Vec<Case>> {
    let changed = |name, refused, change: fn(&mut Value) -> anyhow::Result<()>| {
        let mut bundle = published.clone();
        change(&mut bundle).with_context(|| format!("making the case '{name}'"))?;
        ensure!(bundle != *published, "the case '{name}' changes nothing");
        Ok(Case { name, bundle, other_key: false, refused: Some(refused) })
    };
    Ok(vec![
        Case { name: "as published", bundle: published.clone(), other_key: false, refused: None },
        Case {
            name: "another key under the signer's name",
            bundle: published.clone(),
            other_key: true,
            refused: Some("SIGNATURE_ERROR"),
        },
        changed("one letter of the statement changed", "TLOG_BODY_ERROR", |bundle| {
            replace(bundle, "/dsseEnvelope/payload", |payload| swap(payload, payload.len() / 2))
        })?,
        changed("one letter of the signature changed", "TLOG_BODY_ERROR", |bundle| {
            replace(bundle, "/dsseEnvelope/signatures/0/sig", |signature| swap(signature, signature.len() / 2))
        })?,
        changed("one letter of the inclusion proof changed", "TLOG_INCLUSION_PROOF_ERROR", |bundle| {
            replace(bundle, "/verificationMaterial/tlogEntries/0/inclusionProof/hashes/0", |hash| swap(hash, 7))
        })?,
        changed("another place in the log", "TLOG_INCLUSION_PROOF_ERROR", |bundle| {
            set(bundle, "/verificationMaterial/tlogEntries/0/inclusionProof/logIndex", json!("0"))
        })?,
        changed("one letter of the checkpoint's root changed", "TLOG_INCLUSION_PROOF_ERROR", |bundle| {
            let pointer = "/verificationMaterial/tlogEntries/0/inclusionProof/checkpoint/envelope";
            replace(bundle, pointer, |note| swap(note, note.find("\n\n").unwrap_or_default().saturating_sub(10)))
        })?,
        changed("no log entry", "TLOG_ERROR", |bundle| set(bundle, "/verificationMaterial/tlogEntries", json!([])))?,
    ])
}

/// Another letter of base64 in place of the one at `place`.
fn swap(text: &str, place: usize) -> String {
    let other = |letter| if letter == 'A' { 'B' } else { 'A' };
    text.char_indices().map(|(at, letter)| if at == place { other(letter) } else { letter }).collect()
}

fn replace(bundle: &mut Value, pointer: &str, change: impl Fn(&str) -> String) -> anyhow::Result<()> {
    let changed = change(&text(bundle, pointer)?);
    set(bundle, pointer, Value::String(changed))
}

fn set(bundle: &mut Value, pointer: &str, value: Value) -> anyhow::Result<()> {
    *bundle.pointer_mut(pointer).with_context(|| format!("the bundle has no {pointer}"))? = value;
    Ok(())
}

fn text(bundle: &Value, pointer: &str) -> anyhow::Result<String> {
    let text = bundle.pointer(pointer).and_then(Value::as_str);
    Ok(text.with_context(|| format!("the bundle has no text {pointer}"))?.to_owned())
}

/// Programs and a directory for one run.
struct Scene {
    directory: tempfile::TempDir,
    programs: PathBuf,
    verifier: PathBuf,
}

impl Scene {
    fn new() -> anyhow::Result<Self> {
        let root = workspace::root()?;
        let programs = programs::build(&["measure", "vectors"])?;
        let verifier = workspace::target()?.join("stock-verifier");
        install(&root.join("ci/stock-verifier"), &verifier)?;
        let directory = tempfile::tempdir().context("temporary directory")?;
        Ok(Self { directory, programs, verifier })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn measure(&self, words: &[&str]) -> Command {
        let mut command = process::command(self.programs.join("measure"));
        command.args(["release", "--json"]).args(words).current_dir(self.directory.path());
        command
    }

    fn keys(&self) -> anyhow::Result<()> {
        for (file, kind, name) in [
            ("release.key", "release", None),
            ("other.key", "release", None),
            ("log.key", "log", Some("example.invalid/stock-verifier")),
            ("witness.key", "witness", Some("witness")),
        ] {
            let mut command = self.measure(&["keygen", "--kind", kind, "--out", file]);
            command.args(name.map(|name| ["--name", name]).into_iter().flatten());
            process::json("measure release keygen", &mut command)?;
        }
        let words = "trust --key release.key.pub --log-key log.key.pub --witness witness.key.pub --threshold 1 \
                     --out trust.json --trusted-root-out root.json";
        process::json("measure release trust", &mut self.measure(&words.split_whitespace().collect::<Vec<_>>()))?;
        Ok(())
    }

    /// Signs and logs a statement about a small image of this profile; gives the bundle.
    fn publish(&self, profile: &str) -> anyhow::Result<Value> {
        let mut command = process::command(self.programs.join("vectors"));
        command.args(["statement", "--profile", profile, "--out"]).arg(self.file("statement.json"));
        process::run("vectors statement", &mut command)?;
        let sign = "sign --statement statement.json --key release.key --out signed.json";
        let publish = format!(
            "publish --bundle signed.json --key release.key.pub --log log --create --log-key log.key \
             --witness-key witness.key --out {profile}.json"
        );
        for words in [sign, &publish] {
            process::json("measure release", &mut self.measure(&words.split_whitespace().collect::<Vec<_>>()))?;
        }
        let bundle = std::fs::read(self.file(&format!("{profile}.json"))).context("published bundle")?;
        Ok(serde_json::from_slice(&bundle)?)
    }

    fn verify(&self, case: &Case, hint: &str) -> anyhow::Result<Value> {
        let path = self.file("case.json");
        std::fs::write(&path, case.bundle.to_string()).context("case.json")?;
        let key = if case.other_key { "other.key.pub" } else { "release.key.pub" };
        let mut node = process::command("node");
        node.arg("verify.mjs").arg(self.file("root.json")).arg(self.file(key)).arg(hint).arg(path);
        process::json("node verify.mjs", node.current_dir(&self.verifier))
    }
}

/// Installs the verifier's packages, pinned by digest, beside a copy of the script.
fn install(source: &Path, target: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(target).with_context(|| target.display().to_string())?;
    for name in ["package.json", "package-lock.json", ".npmrc", "verify.mjs"] {
        std::fs::copy(source.join(name), target.join(name)).with_context(|| format!("copying {name}"))?;
    }
    let mut npm = process::command("npm");
    process::run("npm ci", npm.args(["ci", "--no-progress", "--loglevel", "error"]).current_dir(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_pins_by_digest_and_names_no_registry() {
        let path = workspace::root().unwrap().join("ci/stock-verifier/package-lock.json");
        let lock = std::fs::read_to_string(path).unwrap();
        assert!(!lock.contains("\"resolved\"") && !lock.contains("://"), "{lock}");
        let lock: Value = serde_json::from_str(&lock).unwrap();
        let packages = lock["packages"].as_object().unwrap();
        let pinned = |package: &Value| package["integrity"].as_str().is_some_and(|d| d.starts_with("sha512-"));
        assert!(packages.len() > 1 && packages.iter().all(|(name, package)| name.is_empty() || pinned(package)));
    }

    #[test]
    fn a_swapped_letter_is_another_letter() {
        assert_eq!(swap("ABC", 0), "BBC");
        assert_eq!(swap("ABC", 1), "AAC");
        assert_eq!(swap("ABC", 9), "ABC");
    }
}
