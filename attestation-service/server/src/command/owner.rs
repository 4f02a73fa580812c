// SPDX-License-Identifier: Apache-2.0
//! Owners of models: registering one (the operator), signing and sending commands (the owner, anywhere).

mod cosign;

use std::{io::Write as _, net::SocketAddr, os::unix::fs::OpenOptionsExt as _, path::Path};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use key_release::{
    AdmitSuccessor, ImportContext, ImportKey, OwnerAction, OwnerCommand, Revoke, ServiceKeys, SetTenants,
    SignedOwnerCommand, UnwrapErr, owner_public_key,
};
use release_client::{ClientError, ServiceConnection};
use serde_json::json;
use store::OwnerError;
use types::{Base64, Document as _, Refusal, Sha256Digest, Tenants, tenants::API_KEY_PREFIX};
use zeroize::Zeroizing;

use super::{entered, open_beside, policy};
use crate::{
    cli::{OwnerCommandLine, SignArgs},
    input,
    outcome::Outcome,
};

pub(super) fn run(command: &OwnerCommandLine) -> anyhow::Result<Outcome> {
    match command {
        OwnerCommandLine::Keygen { out } => keygen(out),
        OwnerCommandLine::TenantKey { out } => tenant_key(out),
        OwnerCommandLine::Register { store, model, owner, threshold } => {
            let store = open_beside(store)?;
            match store.register_owners(model, owner, *threshold) {
                Ok(()) => {
                    entered(&store);
                    let keys: Vec<_> = owner.iter().map(ToString::to_string).collect();
                    let line = format!("{} of {} own {model}: {}", threshold, owner.len(), keys.join(", "));
                    let document = json!({ "model": model.to_string(), "owners": keys, "threshold": threshold });
                    Ok(Outcome::accepted(vec![line], document))
                }
                Err(error @ OwnerError::Exists) => {
                    let fix = "an owner is set once, when the model is registered";
                    Ok(Outcome::refused(vec![Refusal::new("owner_exists", "model", error.to_string(), fix)]))
                }
                Err(error) => Err(error).context("the owner was not registered"),
            }
        }
        OwnerCommandLine::ServiceKeys { service, pin, out } => service_keys(*service, *pin, out),
        OwnerCommandLine::Cosign { key, command, out, owner, yes } => cosign::cosign(key, command, out, owner, *yes),
        OwnerCommandLine::Sign(args) => sign(args),
        OwnerCommandLine::Send { service, pin, command } => {
            let bytes = input::read(command, SignedOwnerCommand::MAX_BYTES)?;
            let sent = at_service(*service, *pin, async |connection| connection.owner_command(bytes).await)?;
            match sent {
                Ok(answer) => Ok(Outcome::accepted(
                    vec![format!("carried out, entry {} of the audit log", answer.audit_index)],
                    json!({ "audit_index": answer.audit_index, "sequence": answer.sequence }),
                )),
                Err(ClientError::Refused(reasons)) => Ok(Outcome::refused(reasons)),
                Err(error) => Err(error).context("the command was not sent"),
            }
        }
    }
}

/// Connects to a service and does one thing there.
fn at_service<T>(
    service: SocketAddr,
    pin: Sha256Digest,
    step: impl AsyncFnOnce(&mut ServiceConnection) -> Result<T, ClientError>,
) -> anyhow::Result<Result<T, ClientError>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(service);
        let stream = stream.await.with_context(|| format!("could not connect to {service}"))?;
        Ok(match ServiceConnection::connect(stream, pin).await {
            Ok(mut connection) => step(&mut connection).await,
            Err(error) => Err(error),
        })
    })
}

fn service_keys(service: SocketAddr, pin: Sha256Digest, out: &Path) -> anyhow::Result<Outcome> {
    let bytes = at_service(service, pin, async |connection| connection.service_keys().await)?;
    let bytes = bytes.context("the service gave no keys")?;
    let keys = match read_service_keys(&bytes, &pin)? {
        Ok(keys) => keys,
        Err(refused) => return Ok(refused),
    };
    super::serve::write_whole(out, &bytes)?;
    let lines = vec![format!("written to {}", out.display())];
    Ok(Outcome::accepted(lines, json!({ "spki_sha256": pin, "import_key": keys.import_key })))
}

/// The keys of a service, if the key behind `pin` signed them.
fn read_service_keys(bytes: &[u8], pin: &Sha256Digest) -> anyhow::Result<Result<ServiceKeys, Outcome>> {
    let keys = ServiceKeys::from_canonical(bytes).context("the service's keys are malformed")?;
    if keys.are_of(pin, attested_channel::ed25519_spki_sha256) {
        return Ok(Ok(keys));
    }
    let detail = format!("they are not signed by the key behind the pin {pin}");
    let fix = "fetch them from the service that the pin belongs to";
    Ok(Err(Outcome::refused(vec![Refusal::new("service_keys", "signature", detail, fix)])))
}

fn keygen(out: &Path) -> anyhow::Result<Outcome> {
    let seed = random()?;
    write_secret(out, &Zeroizing::new(hex::encode(seed.as_slice())))?;
    let owner = owner_public_key(&seed);
    Ok(Outcome::accepted(vec![owner.to_string()], json!({ "owner": owner })))
}

/// The key itself is shown nowhere: it goes from the file to the tenant.
fn tenant_key(out: &Path) -> anyhow::Result<Outcome> {
    let digits = Zeroizing::new(URL_SAFE_NO_PAD.encode(random()?.as_slice()));
    let key = Zeroizing::new([API_KEY_PREFIX, digits.as_str()].concat());
    write_secret(out, &key)?;
    let digest = Sha256Digest::of(key.as_bytes());
    let lines = vec![format!("{digest} is the SHA-256 of the key in {}", out.display())];
    Ok(Outcome::accepted(lines, json!({ "sha256": digest })))
}

fn random() -> anyhow::Result<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut_slice()).map_err(|_| anyhow::anyhow!("the system gave no randomness"))?;
    Ok(bytes)
}

/// Into a file that nobody else reads, and that was not there.
fn write_secret(out: &Path, text: &str) -> anyhow::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(out)
        .with_context(|| format!("could not make {}", out.display()))?;
    file.write_all(text.as_bytes())?;
    Ok(file.sync_all()?)
}

fn sign(args: &SignArgs) -> anyhow::Result<Outcome> {
    let key = input::read_key(&args.key)?;
    let mut report = policy_lint::Report::default();
    let action = match &args.set_policy {
        Some(path) => {
            let (policy, found) = policy::linted(path, &[])?;
            if !found.errors().is_empty() {
                return Ok(policy::outcome(Vec::new(), json!({}), &found));
            }
            report = found;
            OwnerAction::SetPolicy(Base64::new(policy).context("the policy is too large")?)
        }
        None => match other_action(args)? {
            Ok(action) => action,
            Err(refused) => return Ok(refused),
        },
    };
    let command = OwnerCommand {
        schema: OwnerCommand::SCHEMA.to_owned(),
        service: args.service,
        model: args.model.clone(),
        sequence: args.sequence,
        action,
    };
    let bytes = command.sign(&key)?.to_canonical()?;
    super::serve::write_whole(&args.out, &bytes)?;
    let lines = vec![format!("written to {}", args.out.display())];
    Ok(policy::outcome(lines, json!({ "sequence": args.sequence }), &report))
}

/// What is commanded where it is no policy.
fn other_action(args: &SignArgs) -> anyhow::Result<Result<OwnerAction, Outcome>> {
    if let (Some(successor), Some(predecessor)) = (args.admit_successor, args.predecessor) {
        return Ok(Ok(OwnerAction::AdmitSuccessor(AdmitSuccessor { predecessor, successor })));
    }
    if let (Some(key), Some(version), Some(keys)) = (&args.import_key, args.key_version, &args.service_keys) {
        let keys = match read_service_keys(&input::read(keys, ServiceKeys::MAX_BYTES)?, &args.service)? {
            Ok(keys) => keys,
            Err(refused) => return Ok(Err(refused)),
        };
        let context = ImportContext { service: &args.service, model: &args.model, version };
        let mut random = UnwrapErr(getrandom::SysRng);
        let (enc, ciphertext) = context
            .seal(&input::read_key(key)?, &keys.import_key, &mut random)
            .context("the service's import_key can't be used")?;
        return Ok(Ok(OwnerAction::ImportKey(ImportKey { version, enc, ciphertext })));
    }
    if let Some(path) = &args.set_tenants {
        return Ok(match Tenants::canonical_of(&input::read(path, Tenants::MAX_BYTES)?, &args.model) {
            Ok(document) => {
                let document = Some(Base64::new(document).context("the document is too large")?);
                Ok(OwnerAction::SetTenants(SetTenants { document }))
            }
            Err(error) => {
                let fix = "correct the document; the protocol's page says what stands in it";
                Err(Outcome::refused(vec![Refusal::new("tenants_malformed", "set_tenants", error.to_string(), fix)]))
            }
        });
    }
    if args.clear_tenants {
        return Ok(Ok(OwnerAction::SetTenants(SetTenants { document: None })));
    }
    anyhow::ensure!(args.revoke, "no action is given");
    Ok(Ok(OwnerAction::Revoke(Revoke {})))
}
