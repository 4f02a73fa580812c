// SPDX-License-Identifier: Apache-2.0
//! The guest's configuration: bound by MRCONFIGID, judged field by field.

use attested_channel::ed25519_spki_sha256;
use ed25519_dalek::{Signature, VerifyingKey};
use release::VerifiedRelease;
use tdx_verify::VerifiedQuote;
use types::{Evidence, GuestConfig, RegisterName, Role, Sha384Digest, evidence::AttestedTime};

use crate::{Binding, Policy, registers::role_name, verdict::Checks};

/// MRCONFIGID, MROWNER and MROWNERCONFIG. Gives the configuration where it is well formed.
pub(crate) fn check_identity(evidence: &Evidence, quote: &VerifiedQuote, checks: &mut Checks) -> Option<GuestConfig> {
    let bytes = evidence.guest_config.as_slice();
    let parsed = GuestConfig::parse(bytes);
    let found = parsed.as_ref().map_or_else(ToString::to_string, |_| "a well-formed configuration".to_owned());
    checks.add(parsed.is_ok(), MALFORMED, "canonical JSON of the schema, all values in range", found);
    for (name, facts, expected) in [
        (RegisterName::MrConfigId, DIGEST, GuestConfig::mr_config_id(bytes)),
        (RegisterName::MrOwner, OWNER, Sha384Digest::ZERO),
        (RegisterName::MrOwnerConfig, OWNER_CONFIG, Sha384Digest::ZERO),
    ] {
        let quoted = *quote.registers().value(name);
        checks.equal(facts, &expected, &quoted);
        checks.register(name, vec![expected], quoted);
    }
    parsed.ok()
}

/// The configuration against policy. Its GPUs have a module of their own.
pub(crate) fn check_policy(evidence: &Evidence, config: &GuestConfig, policy: &Policy, checks: &mut Checks) {
    // Every field of the configuration has its judge: fixed, by policy, or free. A new one must be handled here.
    let GuestConfig { schema: _, role, shape: _, model, service, network: _, engine: _, gpus: _ } = config;
    checks.add(role.0 == evidence.role, ROLE, role_name(role.0), role_name(evidence.role));
    let serves = role.0 == Role::Inference;
    checks.add(serves, ROLE_SERVED, role_name(Role::Inference), role_name(role.0));
    let allowed = policy.models.as_ref().is_none_or(|list| list.contains(&model.0));
    checks.add(allowed, MODEL, "a model of the policy's list", &model.0);
    let pin = service.spki_sha256.0;
    let allowed = policy.service_pins.as_ref().is_none_or(|list| list.contains(&pin));
    checks.add(allowed, PIN, "a service of the policy's list", pin);
    let allowed = policy.instances.as_ref().is_none_or(|list| list.contains(&evidence.instance_key));
    checks.add(allowed, INSTANCE, "an instance of the policy's list", evidence.instance_key);
}

/// The guest's time (attack 68): its floor is the build date of the release that it runs, and the service of its
/// configuration signed a later one; for a key release not long ago.
pub(crate) fn check_time(
    evidence: &Evidence,
    config: &GuestConfig,
    release: Option<&VerifiedRelease>,
    binding: Binding<'_>,
    now: u64,
    checks: &mut Checks,
) {
    let floor = evidence.time.floor;
    if let Some(release) = release {
        checks.equal(TIME_FLOOR, &release.values().source_date_epoch, &floor);
    }
    let Some(attested) = &evidence.time.attested else {
        checks.add(false, TIME_MISSING, "a time signed by the pinned service", "the image's build date only");
        return;
    };
    checks.add(true, TIME_MISSING, "a time signed by the pinned service", "one");
    let pin = ed25519_spki_sha256(&attested.service_key);
    checks.equal(TIME_KEY, &config.service.spki_sha256.0, &pin);
    let verifies = time_is_signed(attested);
    checks.add(verifies, TIME_SIGNATURE, "a valid signature", if verifies { "one" } else { "an invalid one" });
    let last = now.saturating_add(MAX_AHEAD);
    let holds = attested.unix >= floor && attested.unix <= last;
    checks.add(holds, TIME_RANGE, format!("{floor} to {last} s since 1970"), attested.unix);
    // A guest that serves asked once, when it booted; one that wants a key asked moments ago.
    if let Binding::KeyRelease { .. } = binding {
        let first = now.saturating_sub(MAX_BEHIND);
        checks.add(attested.unix >= first, TIME_STALE, format!("{first} s since 1970 or later"), attested.unix);
    }
}

fn time_is_signed(time: &AttestedTime) -> bool {
    let Ok(key) = VerifyingKey::from_bytes(time.service_key.as_bytes()) else { return false };
    let Ok(signature) = Signature::from_slice(time.signature.as_slice()) else { return false };
    key.verify_strict(&AttestedTime::signed_bytes(&time.nonce, time.unix), &signature).is_ok()
}

/// How far a signed time may be ahead of the verifier's clock, in seconds.
const MAX_AHEAD: u64 = 300;

/// How far a signed time may lie behind the service's clock when a guest asks for its key, in seconds.
const MAX_BEHIND: u64 = 3600;

type Facts = (&'static str, &'static str, &'static str);
const MALFORMED: Facts = ("config_malformed", "guest_config", "compose the configuration with the host agent");
const DIGEST: Facts = (
    "config_digest_mismatch",
    "mr_config_id",
    "launch with MRCONFIGID = SHA-384 of the configuration given to the guest",
);
const OWNER: Facts = ("mr_owner_nonzero", "mr_owner", "launch with MROWNER zero");
const OWNER_CONFIG: Facts = ("mr_owner_nonzero", "mr_owner_config", "launch with MROWNERCONFIG zero");
const ROLE: Facts = ("role_mismatch", "role", "send evidence of the role that the configuration names");
const ROLE_SERVED: Facts = ("role_not_served", "guest_config.role", "configure the role inference");
const MODEL: Facts =
    ("model_not_allowed", "guest_config.model", "configure an allowed model, or allow this one by policy");
const PIN: Facts =
    ("service_pin_mismatch", "guest_config.service.spki_sha256", "configure the pin of the service that holds the key");
const INSTANCE: Facts = ("instance_not_allowed", "instance_key", "connect to a pinned instance, or pin this one");
const TIME_FLOOR: Facts =
    ("time_floor", "time.floor", "boot the release's own init: its floor is the release's source_date_epoch");
const TIME_MISSING: Facts =
    ("time_not_attested", "time.attested", "let the guest ask the service for the time before this");
const TIME_KEY: Facts = ("time_key_mismatch", "time.attested.service_key", "ask the pinned service for the time");
const TIME_SIGNATURE: Facts = ("time_signature", "time.attested.signature", "ask the pinned service for the time");
const TIME_RANGE: Facts = ("time_range", "time.attested.unix", "correct the service's clock, or this verifier's");
const TIME_STALE: Facts =
    ("time_stale", "time.attested.unix", "boot the guest anew: it asks for its key soon after the time");
