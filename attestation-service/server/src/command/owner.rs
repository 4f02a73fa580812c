// SPDX-License-Identifier: Apache-2.0
//! Owners of models: registering one (the operator), signing and sending commands (the owner, anywhere).

use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use anyhow::Context as _;
use key_release::{OwnerAction, OwnerCommand, Revoke, owner_public_key};
use release_client::{ClientError, ServiceConnection};
use serde_json::json;
use store::OwnerError;
use types::{Base64, Document as _, Refusal};
use zeroize::Zeroizing;

use super::{open_beside, policy};
use crate::{
    cli::{OwnerCommandLine, SignArgs},
    input,
    outcome::Outcome,
};

pub(super) fn run(command: &OwnerCommandLine) -> anyhow::Result<Outcome> {
    match command {
        OwnerCommandLine::Keygen { out } => keygen(out),
        OwnerCommandLine::Register { store, model, owner } => {
            match open_beside(&store.store)?.register_owner(model, owner) {
                Ok(()) => Ok(Outcome::accepted(
                    vec![format!("{owner} owns {model}")],
                    json!({ "model": model.to_string(), "owner": owner }),
                )),
                Err(error @ OwnerError::Exists) => {
                    let fix = "an owner is set once, when the model is registered";
                    Ok(Outcome::refused(vec![Refusal::new("owner_exists", "model", error.to_string(), fix)]))
                }
                Err(error) => Err(error).context("the owner was not registered"),
            }
        }
        OwnerCommandLine::Sign(args) => sign(args),
        OwnerCommandLine::Send { service, pin, command } => {
            let bytes = input::read(command, key_release::SignedOwnerCommand::MAX_BYTES)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let sent = runtime.block_on(async {
                let stream = tokio::net::TcpStream::connect(service)
                    .await
                    .with_context(|| format!("could not connect to {service}"))?;
                anyhow::Ok(match ServiceConnection::connect(stream, *pin).await {
                    Ok(mut connection) => connection.owner_command(bytes).await,
                    Err(error) => Err(error),
                })
            })?;
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

fn keygen(out: &Path) -> anyhow::Result<Outcome> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut_slice()).map_err(|_| anyhow::anyhow!("the system gave no randomness"))?;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(out)
        .with_context(|| format!("could not make {}", out.display()))?;
    file.write_all(Zeroizing::new(hex::encode(seed.as_slice())).as_bytes())?;
    file.sync_all()?;
    let owner = owner_public_key(&seed);
    Ok(Outcome::accepted(vec![owner.to_string()], json!({ "owner": owner })))
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
        None => OwnerAction::Revoke(Revoke {}),
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
