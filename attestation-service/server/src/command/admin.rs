// SPDX-License-Identifier: Apache-2.0
//! Administration of a store, also beside a running service.

use std::path::Path;

use anyhow::Context as _;
use release::{TrustPolicy, VerifiedRelease};
use serde_json::json;
use store::{InitOptions, KeyStoreError, OpenOptions, ReleaseStoreError, Store};
use types::{Document as _, Refusal, Sha256Digest};

use super::{now, open_beside};
use crate::{
    cli::{AuditCommand, InitArgs, KeysCommand, PlatformsCommand, ReleasesCommand, StoreArgs},
    identity::Identity,
    input,
    outcome::Outcome,
    service::{self, trust_policy_name},
};

pub(super) fn init(args: &InitArgs) -> anyhow::Result<Outcome> {
    let dir = &args.store.store;
    let identity = Identity::generate()?;
    let pin = identity.spki_sha256();
    let origin = args.audit_origin.clone().unwrap_or_else(|| format!("attestation-service/{pin}/audit"));
    Store::init(dir, &InitOptions { audit_origin: origin.clone(), kek: None })
        .with_context(|| format!("could not make a store in {}", dir.display()))?;
    let store = Store::open(dir).context("could not open the new store")?;
    identity.save(&store)?;
    let lines =
        vec![format!("store made in {}", dir.display()), format!("guests pin {pin}"), format!("audit log {origin}")];
    Ok(Outcome::accepted(lines, json!({ "spki_sha256": pin, "audit_origin": origin, "audit_key": store.audit_key() })))
}

pub(super) fn identity(args: &StoreArgs) -> anyhow::Result<Outcome> {
    let store = open_beside(&args.store)?;
    let pin = Identity::load(&store)?.spki_sha256();
    Ok(Outcome::accepted(vec![pin.to_string()], json!({ "spki_sha256": pin, "audit_key": store.audit_key() })))
}

pub(super) fn keys(command: KeysCommand) -> anyhow::Result<Outcome> {
    match command {
        KeysCommand::Import { store, model, version, key } => {
            let key = input::read_key(&key)?;
            let store = open_beside(&store.store)?;
            match store.import_key(&model, version, &key) {
                Ok(()) => Ok(Outcome::accepted(
                    vec![format!("imported version {version} of the key of {model}")],
                    json!({ "model": model.to_string(), "version": version }),
                )),
                Err(error @ KeyStoreError::Exists { .. }) => {
                    Ok(refused("key_exists", "version", &error, "import the key as a new version"))
                }
                Err(error @ KeyStoreError::Revoked) => {
                    Ok(refused("model_revoked", "model", &error, "import the key of its successor"))
                }
                Err(error) => Err(error).context("the key was not imported"),
            }
        }
        KeysCommand::Revoke { store, model } => {
            open_beside(&store.store)?.revoke_model(&model)?;
            Ok(Outcome::accepted(vec![format!("revoked {model}")], json!({ "revoked": model.to_string() })))
        }
        KeysCommand::List(args) => {
            let keys = open_beside(&args.store)?.keys()?;
            let lines = keys.iter().map(|key| format!("{} version {}", key.model, key.version)).collect();
            let list: Vec<_> =
                keys.iter().map(|key| json!({ "model": key.model.to_string(), "version": key.version })).collect();
            Ok(Outcome::accepted(lines, json!({ "keys": list })))
        }
    }
}

pub(super) fn platforms(command: &PlatformsCommand) -> anyhow::Result<Outcome> {
    let PlatformsCommand::Revoke { store, platform } = command;
    open_beside(&store.store)?.revoke_platform(platform)?;
    Ok(Outcome::accepted(vec![format!("revoked {platform}")], json!({ "revoked": platform })))
}

pub(super) fn releases(command: ReleasesCommand) -> anyhow::Result<Outcome> {
    match command {
        ReleasesCommand::Import { store, bundle, trust } => import(&store.store, &bundle, &trust),
        ReleasesCommand::Revoke { store, digest } => {
            open_beside(&store.store)?.revoke_release(&digest)?;
            Ok(Outcome::accepted(vec![format!("revoked {digest}")], json!({ "revoked": digest })))
        }
        ReleasesCommand::List(args) => {
            let store = open_beside(&args.store)?;
            let mut lines = Vec::new();
            let mut list = Vec::new();
            for stored in store.releases()? {
                let verified = service::verified(&store, &stored.digest, &stored.bundle, now());
                let state = match (&verified, stored.revoked) {
                    (_, true) => "revoked".to_owned(),
                    (Ok(_), false) => "in force".to_owned(),
                    (Err(error), false) => format!("not usable: {error}"),
                };
                lines.push(format!("{} {state}", stored.digest));
                list.push(json!({ "digest": stored.digest, "revoked": stored.revoked, "usable": verified.is_ok(), "state": state }));
            }
            Ok(Outcome::accepted(lines, json!({ "releases": list })))
        }
    }
}

fn import(dir: &Path, bundle: &Path, trust: &Path) -> anyhow::Result<Outcome> {
    let trust_bytes = input::read(trust, TrustPolicy::MAX_BYTES)?;
    let trust = match TrustPolicy::parse(&trust_bytes) {
        Ok(trust) => trust,
        Err(error) => return Ok(refused("release_policy_malformed", "trust", &error, "correct the trust policy")),
    };
    let bytes = input::read(bundle, MAX_BUNDLE)?;
    let verified = match VerifiedRelease::verify(&bytes, &trust, now()) {
        Ok(verified) => verified,
        Err(error) => return Ok(Outcome::refused(vec![error.refusal()])),
    };
    let digest: Sha256Digest = *verified.digest();
    let store = open_beside(dir)?;
    // The trust policy first: a release without one is not used.
    store.set_policy(&trust_policy_name(&digest), &trust_bytes)?;
    match store.import_release(&bytes, &verified) {
        Ok(()) => Ok(Outcome::accepted(
            vec![format!("imported {digest}")],
            json!({ "digest": digest, "profile": verified.values().profile, "log_index": verified.log_index() }),
        )),
        Err(error @ ReleaseStoreError::Revoked) => {
            Ok(refused("release_revoked", "bundle", &error, "import the successor release"))
        }
        Err(error) => Err(error).context("the release was not imported"),
    }
}

pub(super) fn audit(command: AuditCommand) -> anyhow::Result<Outcome> {
    match command {
        AuditCommand::List(store) => audit_list(&store),
        AuditCommand::Verify { store, checkpoint } => audit_verify(&store, checkpoint.as_deref()),
    }
}

/// Every entry of the log, shown only when the whole log verifies.
fn audit_list(args: &StoreArgs) -> anyhow::Result<Outcome> {
    let opened = match open_audit(&args.store, None)? {
        Ok(opened) => opened,
        Err(outcome) => return Ok(outcome),
    };
    let mut entries = Vec::new();
    if let Err(error) = opened.verify_audit_with(|index, entry| entries.push(json!({ "index": index, "entry": entry })))
    {
        return Ok(refused_log(&error));
    }
    let lines = entries.iter().map(ToString::to_string).collect();
    Ok(Outcome::accepted(lines, json!({ "entries": entries })))
}

fn refused_log(error: &dyn core::fmt::Display) -> Outcome {
    refused("audit_log", "audit", error, "restore the log from its newest copy; tell its witnesses")
}

/// The store for reading its log alone; the outcome where the log contradicts what is known of it.
fn open_audit(dir: &Path, known: Option<&Path>) -> anyhow::Result<Result<Store, Outcome>> {
    open_known(dir, false, known)
}

/// The store; the outcome where its log contradicts what is known of it, in the database or in the file `known`.
pub(super) fn open_known(dir: &Path, sequencer: bool, known: Option<&Path>) -> anyhow::Result<Result<Store, Outcome>> {
    let known_checkpoint = known
        .map(|path| input::read(path, MAX_CHECKPOINT).and_then(|bytes| Ok(String::from_utf8(bytes)?)))
        .transpose()?;
    let options = OpenOptions { sequencer, known_checkpoint, ..OpenOptions::default() };
    match Store::open_with(dir, &options) {
        Ok(opened) => Ok(Ok(opened)),
        Err(
            error @ (store::OpenError::RolledBack { .. }
            | store::OpenError::KnownCheckpoint(_)
            | store::OpenError::AuditTile(_)),
        ) => Ok(Err(refused_log(&error))),
        // With the sequencer it may be that another service runs, which is no fault of the log.
        Err(error @ store::OpenError::Audit(_)) if !sequencer => Ok(Err(refused_log(&error))),
        Err(error) => Err(error).context("could not open the store"),
    }
}

fn audit_verify(args: &StoreArgs, checkpoint: Option<&Path>) -> anyhow::Result<Outcome> {
    let opened = match open_audit(&args.store, checkpoint)? {
        Ok(opened) => opened,
        Err(outcome) => return Ok(outcome),
    };
    match opened.verify_audit() {
        Ok(summary) => {
            let (size, root) = (summary.checkpoint.head().size(), *summary.checkpoint.head().root());
            let lines = vec![format!(
                "{size} entries, {} releases, {} refusals, root {root}",
                summary.key_releases, summary.refusals
            )];
            let document = json!({
                "size": size, "root": root, "key_releases": summary.key_releases, "refusals": summary.refusals,
                "checkpoint": summary.checkpoint.note(),
            });
            Ok(Outcome::accepted(lines, document))
        }
        Err(error) => Ok(refused_log(&error)),
    }
}

fn refused(code: &str, field: &str, error: &dyn core::fmt::Display, fix: &str) -> Outcome {
    Outcome::refused(vec![Refusal::new(code, field, error.to_string(), fix)])
}

const MAX_BUNDLE: usize = 4 << 20;
const MAX_CHECKPOINT: usize = 64 * 1024;
