// SPDX-License-Identifier: Apache-2.0
//! Administration of a store, also beside a running service.

use std::path::Path;

use anyhow::Context as _;
use release::{TrustPolicy, VerifiedRelease};
use serde_json::json;
use store::{InitOptions, KeyStoreError, ReleaseStoreError, Store};
use types::{Document as _, Refusal, Sha256Digest};

use super::{entered, now, open_beside, open_options};
use crate::{
    cli::{InitArgs, KeysCommand, PlatformsCommand, ReleasesCommand, StoreArgs},
    identity::Identity,
    input,
    outcome::Outcome,
    service::{self, trust_policy_name},
};

pub(super) fn init(args: &InitArgs) -> anyhow::Result<Outcome> {
    let place = &args.store.store;
    let identity = Identity::generate()?;
    let pin = identity.spki_sha256();
    let origin = args.audit_origin.clone().unwrap_or_else(|| format!("attestation-service/{pin}/audit"));
    let options = InitOptions { audit_origin: origin.clone(), kek: args.store.kek.first().cloned() };
    // In one transaction with the rest: a crash leaves no store without its key.
    let (name, seed) = identity.secret();
    let made = Store::init_with(place, &options, &[(name, seed.as_slice())]);
    made.with_context(|| format!("could not make a store in {place}"))?;
    let store = Store::open_with(place, &open_options(&args.store)).context("could not open the new store")?;
    let lines = vec![format!("store made in {place}"), format!("guests pin {pin}"), format!("audit log {origin}")];
    Ok(Outcome::accepted(lines, json!({ "spki_sha256": pin, "audit_origin": origin, "audit_key": store.audit_key() })))
}

pub(super) fn identity(args: &StoreArgs) -> anyhow::Result<Outcome> {
    let store = open_beside(args)?;
    let pin = Identity::load(&store)?.spki_sha256();
    Ok(Outcome::accepted(vec![pin.to_string()], json!({ "spki_sha256": pin, "audit_key": store.audit_key() })))
}

pub(super) fn keys(command: KeysCommand) -> anyhow::Result<Outcome> {
    match command {
        KeysCommand::Import { store, model, version, key } => {
            let key = input::read_key(&key)?;
            let store = open_beside(&store)?;
            match store.import_key(&model, version, &key) {
                Ok(()) => {
                    entered(&store);
                    Ok(Outcome::accepted(
                        vec![format!("imported version {version} of the key of {model}")],
                        json!({ "model": model.to_string(), "version": version }),
                    ))
                }
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
            let store = open_beside(&store)?;
            store.revoke_model(&model)?;
            entered(&store);
            Ok(Outcome::accepted(vec![format!("revoked {model}")], json!({ "revoked": model.to_string() })))
        }
        KeysCommand::List(args) => {
            let keys = open_beside(&args)?.keys()?;
            let lines = keys.iter().map(|key| format!("{} version {}", key.model, key.version)).collect();
            let list: Vec<_> =
                keys.iter().map(|key| json!({ "model": key.model.to_string(), "version": key.version })).collect();
            Ok(Outcome::accepted(lines, json!({ "keys": list })))
        }
    }
}

pub(super) fn platforms(command: &PlatformsCommand) -> anyhow::Result<Outcome> {
    let PlatformsCommand::Revoke { store, platform } = command;
    let store = open_beside(store)?;
    store.revoke_platform(platform)?;
    entered(&store);
    Ok(Outcome::accepted(vec![format!("revoked {platform}")], json!({ "revoked": platform })))
}

pub(super) fn releases(command: ReleasesCommand) -> anyhow::Result<Outcome> {
    match command {
        ReleasesCommand::Import { store, bundle, trust } => import(&store, &bundle, &trust),
        ReleasesCommand::Revoke { store, digest } => {
            let store = open_beside(&store)?;
            store.revoke_release(&digest)?;
            entered(&store);
            Ok(Outcome::accepted(vec![format!("revoked {digest}")], json!({ "revoked": digest })))
        }
        ReleasesCommand::List(args) => {
            let store = open_beside(&args)?;
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

fn import(args: &StoreArgs, bundle: &Path, trust: &Path) -> anyhow::Result<Outcome> {
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
    let store = open_beside(args)?;
    // The trust policy first: a release without one is not used.
    store.set_policy(&trust_policy_name(&digest), &trust_bytes)?;
    let imported = store.import_release(&bytes, &verified);
    entered(&store);
    match imported {
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

pub(super) fn refused(code: &str, field: &str, error: &dyn core::fmt::Display, fix: &str) -> Outcome {
    Outcome::refused(vec![Refusal::new(code, field, error.to_string(), fix)])
}

const MAX_BUNDLE: usize = 4 << 20;
