// SPDX-License-Identifier: Apache-2.0
//! `ear`: attestation results, verified with the keys that a service publishes.

use std::path::Path;

use attestation_result::{AttestationResult, KeySet, MAX_KEY_SET, MAX_TOKEN};
use serde_json::{Value, json};
use types::{Hex32, Refusal, Sha256Digest};

use super::{now, open_beside};
use crate::{cli::EarCommand, identity::Identity, input, outcome::Outcome};

pub(super) fn run(command: &EarCommand) -> anyhow::Result<Outcome> {
    match command {
        EarCommand::Keys(args) => {
            let keys = serde_json::to_value(Identity::load(&open_beside(args)?)?.result_keys())?;
            Ok(Outcome::document(keys.to_string(), keys))
        }
        EarCommand::Verify { token, keys, pin, audience, at } => {
            let keys = match KeySet::verified(&input::read(keys, MAX_KEY_SET)?, pin.as_ref()) {
                Ok(keys) => keys,
                Err(error) => {
                    let fix = "fetch the keys from the service that is meant: GET /v1/ear/keys";
                    return Ok(Outcome::refused(vec![Refusal::new("ear_keys", "keys", error.to_string(), fix)]));
                }
            };
            verify(token, &keys, pin.as_ref(), audience.as_deref(), at.unwrap_or_else(now))
        }
    }
}

fn verify(
    path: &Path,
    keys: &[Hex32],
    pin: Option<&Sha256Digest>,
    audience: Option<&str>,
    now: u64,
) -> anyhow::Result<Outcome> {
    let bytes = input::read(path, MAX_TOKEN.saturating_add(2))?;
    let token = core::str::from_utf8(&bytes).map(str::trim).unwrap_or_default();
    let result = match attestation_result::verify(token, keys, audience, now) {
        Ok(result) => result,
        Err(error) => {
            let fix = "ask the service for another result, or give the keys of the service that issued it";
            return Ok(Outcome::refused(vec![Refusal::new("ear_token", "token", error.to_string(), fix)]));
        }
    };
    let mut lines = vec![format!("status {}, until {}", name(&result.ear_status), result.exp)];
    lines.extend(result.submods.iter().map(|(part, submodule)| format!("{part}: {}", name(&submodule.ear_status))));
    let service = if pin.is_some() { "pinned" } else { "not_pinned" };
    lines.push(format!("service: {service}"));
    let document = json!({ "status": result.ear_status, "service": service, "result": result });
    Ok(Outcome::judged(lines, document, reasons(&result)))
}

/// A result that is genuine and says no is no acceptance.
fn reasons(result: &AttestationResult) -> Vec<Refusal> {
    if result.ear_status < attestation_result::Tier::Contraindicated {
        return Vec::new();
    }
    let claims = result.submods.values().filter_map(|submodule| submodule.ear_verifier_claims.as_ref());
    let codes: Vec<_> = claims.flat_map(|claims| claims.reasons.iter().cloned()).collect();
    let detail = format!("the guest was refused: {}", codes.join(", "));
    vec![Refusal::new("ear_contraindicated", "ear_status", detail, "mend what the codes say, and appraise again")]
}

fn name<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_value(value).ok().as_ref().and_then(Value::as_str).unwrap_or("?").to_owned()
}
