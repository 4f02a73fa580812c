// SPDX-License-Identifier: Apache-2.0
//! `owner cosign`: shows what a command says and who signed it, and signs only what was shown.

use std::path::Path;

use anyhow::Context as _;
use key_release::{AdmitSuccessor, ImportKey, OwnerAction, OwnerCommand, SetTenants, SignedOwnerCommand};
use serde_json::{Value, json};
use types::{Document as _, Hex32, Refusal, Sha256Digest, Tenants};

use crate::{
    command::serve::write_whole,
    demand::{Compiled, Demand},
    input,
    outcome::Outcome,
};

/// Nobody should cosign what nobody read: without the digest that an earlier call showed nothing is signed.
pub(super) fn cosign(
    key: &Path,
    command: &Path,
    out: &Path,
    owners: &[Hex32],
    yes: Option<Sha256Digest>,
) -> anyhow::Result<Outcome> {
    let bytes = input::read(command, SignedOwnerCommand::MAX_BYTES)?;
    let mut signed = SignedOwnerCommand::from_canonical(&bytes).context("the signed command is malformed")?;
    let inner = signed.unverified().context("the command is malformed")?;
    // Every signature that is there must be one of the owner's, each key once.
    if let Err(refusal) = signed.verified(owners, 1, &inner.service) {
        return Ok(Outcome::refused(vec![refusal]));
    }
    let (action, mut document) = match described(&inner) {
        Ok(described) => described,
        Err(refusal) => return Ok(Outcome::refused(vec![refusal])),
    };
    let digest = Sha256Digest::of(&bytes);
    let mut lines = vec![
        format!("command {} of {} for the service {}:", inner.sequence, inner.model, inner.service),
        action.clone(),
        format!("signed by {} of the given keys; digest {digest}", signed.cosignatures.len().saturating_add(1)),
    ];
    let mut signatures = signed.cosignatures.len().saturating_add(1);
    match yes {
        None => lines.push(format!("nothing was signed: read it, then give --yes {digest}")),
        Some(shown) if shown != digest => {
            let detail = format!("the command's digest is {digest}, the one that was read {shown}");
            let refusal = Refusal::new("owner_command_digest", "yes", detail, "read the command before signing it");
            return Ok(Outcome::refused(vec![refusal]));
        }
        Some(_) => {
            let key = input::read_key(key)?;
            signed.cosign(&key);
            // A key that is none of the owner's, or that signed already, is found here and not by the service.
            if let Err(refusal) = signed.verified(owners, 1, &inner.service) {
                return Ok(Outcome::refused(vec![refusal]));
            }
            write_whole(out, &signed.to_canonical()?)?;
            signatures = signatures.saturating_add(1);
            lines.push(format!("{signatures} signatures, written to {}", out.display()));
        }
    }
    if let Some(fields) = document.as_object_mut() {
        fields.insert("model".to_owned(), inner.model.to_string().into());
        fields.insert("service".to_owned(), json!(inner.service));
        fields.insert("sequence".to_owned(), inner.sequence.into());
        fields.insert("action".to_owned(), action.into());
        fields.insert("digest".to_owned(), json!(digest));
        fields.insert("signatures".to_owned(), signatures.into());
        fields.insert("signed".to_owned(), yes.is_some().into());
    }
    Ok(Outcome::accepted(lines, document))
}

/// What a command says, in text that can't move a terminal's cursor, and its parts.
fn described(command: &OwnerCommand) -> Result<(String, Value), Refusal> {
    Ok(match &command.action {
        OwnerAction::SetPolicy(policy) => {
            let bytes = policy.as_slice();
            let malformed = |e: &dyn core::fmt::Display| {
                Refusal::new("policy_malformed", "command.action", e.to_string(), "sign no command that sets it")
            };
            Demand::read(bytes, &Compiled::new()).map_err(|e| malformed(&e))?;
            let parsed: Value = serde_json::from_slice(bytes).map_err(|e| malformed(&e))?;
            let (digest, shown) = (Sha256Digest::of(bytes), escaped(&format!("{parsed:#}")));
            let text = format!("set the policy with SHA-256 {digest}:\n{shown}");
            (text, json!({ "policy": parsed, "policy_sha256": digest }))
        }
        OwnerAction::Revoke(_) => ("revoke the model for good".to_owned(), json!({})),
        OwnerAction::AdmitSuccessor(AdmitSuccessor { predecessor, successor }) => {
            (format!("admit the release {successor} in place of {predecessor}"), json!({}))
        }
        OwnerAction::ImportKey(ImportKey { version, enc, ciphertext }) => {
            let digest = Sha256Digest::of_parts(&[enc.as_bytes(), ciphertext.as_slice()]);
            let text = format!("import version {version} of the model's key (sealed, SHA-256 {digest})");
            (text, json!({ "version": version, "sealed_sha256": digest }))
        }
        OwnerAction::SetTenants(SetTenants { document: None }) => {
            ("let whoever proves a guest ask the model".to_owned(), json!({ "tenants": null }))
        }
        OwnerAction::SetTenants(SetTenants { document: Some(document) }) => {
            let bytes = document.as_slice();
            let malformed = |e: &dyn core::fmt::Display| {
                Refusal::new("tenants_malformed", "command.action", e.to_string(), "sign no command that sets it")
            };
            Tenants::read(bytes, &command.model).map_err(|e| malformed(&e))?;
            let parsed: Value = serde_json::from_slice(bytes).map_err(|e| malformed(&e))?;
            let (digest, shown) = (Sha256Digest::of(bytes), escaped(&format!("{parsed:#}")));
            let text = format!("let these tenants alone ask the model, SHA-256 {digest}:\n{shown}");
            (text, json!({ "tenants": parsed, "tenants_sha256": digest }))
        }
    })
}

/// Everything but line ends and visible ASCII as its number: a name may hold what moves a cursor or reverses text.
fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | ' '..='~' => shown.push(character),
            other => shown.push_str(&format!("\\u{{{:x}}}", u32::from(other))),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_a_cursor_is_shown_as_a_number() {
        assert_eq!(escaped("a\u{1b}[2J\r\u{202e}b\u{7f}\nc é"), "a\\u{1b}[2J\\u{d}\\u{202e}b\\u{7f}\nc \\u{e9}");
    }
}
