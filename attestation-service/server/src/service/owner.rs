// SPDX-License-Identifier: Apache-2.0
//! Commands of models' owners. Whoever sends them: the signature is what counts.

use std::sync::PoisonError;

use appraise::Policy;
use key_release::{OwnerAction, SignedOwnerCommand};
use serde::Serialize;
use store::{AuditEntry, OwnerChange, OwnerEntry, OwnerError};
use types::{Document as _, ModelId, Refusal, Sha256Digest};

use super::{Service, malformed};
use crate::reply::Refused;

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
        // Of two commands with one sequence the second is refused before it is entered. There is no data in the mutex.
        let _one = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let owner = self.store.owner(model.identity()).map_err(|e| unable(&e))?.ok_or_else(|| unknown(&model))?;
        let command = signed
            .verified(&owner.key, &self.identity.spki_sha256())
            .map_err(|refusal| Refused::because(vec![refusal]))?;
        if command.sequence <= owner.sequence {
            return Err(out_of_order(owner.sequence, command.sequence));
        }
        let change = match &command.action {
            OwnerAction::Revoke(_) => OwnerChange::Revoke,
            OwnerAction::SetPolicy(policy) => {
                Policy::from_json(policy.as_slice()).map_err(|e| {
                    let fix = "correct the policy and sign it with the next sequence";
                    Refused::because(vec![Refusal::new("policy_malformed", "command.action", e.to_string(), fix)])
                })?;
                OwnerChange::Policy(policy.as_slice().to_vec())
            }
        };
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
            other => unable(&other),
        })?;
        tracing::info!(%model, sequence = command.sequence, audit_index, "a command of the owner was carried out");
        Ok(OwnerAnswer { model, sequence: command.sequence, audit_index })
    }
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
