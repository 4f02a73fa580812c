// SPDX-License-Identifier: Apache-2.0
//! Commands of models' owners. Whoever sends them: the signature is what counts.

use std::sync::PoisonError;

use key_release::{
    AdmitSuccessor, ImportContext, ImportKey, OwnerAction, OwnerCommand, SetTenants, SignedOwnerCommand,
};
use serde::Serialize;
use store::{AuditEntry, KeyStoreError, OwnerChange, OwnerEntry, OwnerError, Successor, WrapError};
use types::{Document as _, ModelId, Refusal, Sha256Digest, Tenants};

use super::{Service, malformed};
use crate::{
    demand::{Compiled, Demand},
    grounds,
    reply::Refused,
    successors,
};

/// Answer to `POST /v1/owner-commands`: what was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OwnerAnswer {
    model: ModelId,
    sequence: u64,
    /// Index of its entry in the audit log.
    audit_index: u64,
}

#[cfg(test)]
impl OwnerAnswer {
    /// One with every field set.
    pub(crate) const fn sample(model: ModelId) -> Self {
        Self { model, sequence: 1, audit_index: 2 }
    }
}

impl Service {
    /// Carries out a command of a model's owner. It counts from the next request on.
    ///
    /// It is entered in the audit log first: an entry means that the command was accepted. Where the service ended, or
    /// its database failed, between the two, it was not carried out; the same command may then be sent again.
    ///
    /// # Errors
    /// The refusal.
    pub fn owner_command(&self, body: &[u8]) -> Result<OwnerAnswer, Refused> {
        let unable = |e: &dyn core::fmt::Display| Refused::unable("store_unavailable", e);
        let signed = SignedOwnerCommand::from_canonical(body).map_err(|e| malformed(&e))?;
        let model = signed.unverified().map_err(|e| malformed(&e))?.model;
        // Anybody can send commands: what is no owner's waits for no lock, and nobody waits for it.
        self.command_in_order(&signed, &model)?;
        // Of two commands with one sequence the second is refused before it is entered. There is no data in the mutex.
        let _one = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let _one_of_all_replicas = self.store.hold_commands().map_err(|e| unable(&e))?;
        let command = self.command_in_order(&signed, &model)?;
        let change = self.change(&command)?;
        let entry = OwnerEntry {
            schema: OwnerEntry::SCHEMA.to_owned(),
            unix: (self.clock)(),
            model: model.clone(),
            sequence: command.sequence,
            command: Sha256Digest::of(body),
        };
        let proof = self.store.append_audit(&AuditEntry::Owner(entry));
        let audit_index = proof.map_err(|e| Refused::unable("audit_unavailable", &e))?.index;
        self.store.command_of_owner(&model, command.sequence, &change).map_err(|error| match error {
            OwnerError::Sequence { known, found } => out_of_order(known, found),
            OwnerError::Unknown => unknown(&model),
            OwnerError::Key(error @ KeyStoreError::Exists { .. }) => key_exists(&error),
            OwnerError::Key(error @ KeyStoreError::Revoked) => model_revoked(&error),
            OwnerError::Key(KeyStoreError::Wrap(error @ WrapError::Unavailable(_))) => {
                Refused::unable("kek_unavailable", &error)
            }
            other => unable(&other),
        })?;
        // That it was carried out stands in the log from here; where it can't now, with the next entry.
        if let Err(error) = self.store.enter_changes() {
            tracing::warn!(code = "audit_unavailable", %error, "that a command was carried out is not in the audit log yet");
        }
        tracing::info!(%model, sequence = command.sequence, audit_index, "a command of the owner was carried out");
        Ok(OwnerAnswer { model, sequence: command.sequence, audit_index })
    }
}

impl Service {
    /// The command, if its owner's keys signed it and its sequence comes after the last that was carried out.
    fn command_in_order(&self, signed: &SignedOwnerCommand, model: &ModelId) -> Result<OwnerCommand, Refused> {
        let owner = self.store.owner(model.identity()).map_err(|e| Refused::unable("store_unavailable", &e))?;
        let owner = owner.ok_or_else(|| unknown(model))?;
        let command = signed
            .verified(&owner.keys, owner.threshold, &self.identity.spki_sha256())
            .map_err(|refusal| Refused::because(vec![refusal]))?;
        if command.sequence <= owner.sequence {
            return Err(out_of_order(owner.sequence, command.sequence));
        }
        Ok(command)
    }

    /// What a command changes; refused before it is entered in the log where it could not be carried out.
    fn change(&self, command: &OwnerCommand) -> Result<OwnerChange, Refused> {
        let refuse = |code: &str, field: &str, detail: String, fix: &str| {
            Err(Refused::because(vec![Refusal::new(code, field, detail, fix)]))
        };
        match &command.action {
            OwnerAction::Revoke(_) => Ok(OwnerChange::Revoke),
            OwnerAction::SetPolicy(policy) => match Demand::read(policy.as_slice(), &Compiled::new()) {
                Ok(_) => Ok(OwnerChange::Policy(policy.as_slice().to_vec())),
                Err(error) => {
                    let fix = "correct the policy and sign it with the next sequence";
                    refuse("policy_malformed", "command.action", error.to_string(), fix)
                }
            },
            OwnerAction::AdmitSuccessor(AdmitSuccessor { predecessor, successor }) => {
                let admitted = Successor { predecessor: *predecessor, successor: *successor };
                let standing = grounds::now(&self.store, &self.identity.spki_sha256(), (self.clock)())?;
                let listed = standing.listed.get(command.model.identity()).map(Vec::as_slice);
                successors::check(listed, admitted, &standing.releases)
                    .map_err(|refusal| Refused::because(vec![refusal]))?;
                Ok(OwnerChange::Successor(admitted))
            }
            OwnerAction::ImportKey(ImportKey { version, enc, ciphertext }) => {
                let pin = self.identity.spki_sha256();
                let context = ImportContext { service: &pin, model: &command.model, version: *version };
                let Ok(key) = self.identity.import_keys().open(enc, ciphertext, &context) else {
                    let detail = "the sealed key does not open for this service, model and version".to_owned();
                    let fix = "seal it to the import_key of GET /v1/service, for exactly this model and version";
                    return refuse("owner_key_sealed", "command.action.ciphertext", detail, fix);
                };
                let unable = |e| Refused::unable("store_unavailable", &e);
                if self.store.is_model_revoked(&command.model).map_err(unable)? {
                    return Err(model_revoked(&KeyStoreError::Revoked));
                }
                let keys = self.store.keys().map_err(|e| Refused::unable("store_unavailable", &e))?;
                let there = keys.iter().any(|key| key.model == command.model && key.version == *version);
                if there || *version == 0 {
                    let (model, version) = (command.model.to_string(), *version);
                    return Err(key_exists(&KeyStoreError::Exists { model, version }));
                }
                Ok(OwnerChange::Key { version: *version, key })
            }
            OwnerAction::SetTenants(SetTenants { document: None }) => Ok(OwnerChange::Tenants(None)),
            OwnerAction::SetTenants(SetTenants { document: Some(document) }) => {
                match Tenants::read(document.as_slice(), &command.model) {
                    Ok(_) => Ok(OwnerChange::Tenants(Some(document.as_slice().to_vec()))),
                    Err(error) => {
                        let fix = "correct the document and sign it with the next sequence";
                        refuse("tenants_malformed", "command.action", error.to_string(), fix)
                    }
                }
            }
        }
    }
}

fn key_exists(error: &KeyStoreError) -> Refused {
    let fix = "seal it as a new version, from 1; the newest one is the one that guests get";
    Refused::because(vec![Refusal::new("key_exists", "command.action.version", error.to_string(), fix)])
}

fn model_revoked(error: &KeyStoreError) -> Refused {
    let fix = "import the key of its successor";
    Refused::because(vec![Refusal::new("owner_model_revoked", "command.model", error.to_string(), fix)])
}

fn unknown(model: &ModelId) -> Refused {
    let detail = format!("no owner of {model} is registered");
    let fix = "have the service's operator register the owner with `owner register`";
    Refused::because(vec![Refusal::new("owner_unknown", "command.model", detail, fix)])
}

fn out_of_order(known: u64, found: u64) -> Refused {
    let detail = format!("more than {known}, which was carried out; found {found}");
    let fix = "sign the command with a higher sequence";
    Refused::because(vec![Refusal::new("owner_sequence", "command.sequence", detail, fix)])
}
