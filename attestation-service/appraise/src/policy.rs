// SPDX-License-Identifier: Apache-2.0
//! What an owner or a client demands of a guest, as data.

use gpu_verify::GpuPolicy;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tdx_verify::PlatformPolicy;
use types::{Hex32, ModelId, Sha256Digest};

use crate::{Claims, MAX_RULES, RuleEngine, RuleSource};

/// An appraisal policy (`chrysalis/appraisal-policy/v1`), written by people: JSON in any layout, unknown and repeated
/// fields refused. Every absent list means "any"; nothing here switches a built-in rule off, and which hardware is
/// believed is no matter of policy but of the program's trust anchors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// [`Policy::SCHEMA`].
    pub schema: String,
    /// Platforms and their TCB.
    #[serde(default)]
    pub platform: PlatformPolicy,
    /// Digests of the only releases accepted, among those verified by their signer and log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub releases: Option<Vec<Sha256Digest>>,
    /// Digests of releases that are not accepted any more.
    #[serde(default)]
    pub revoked_releases: Vec<Sha256Digest>,
    /// The only models accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<ModelId>>,
    /// The only attestation services that may have given the guest its key: SHA-256 of their SPKI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_pins: Option<Vec<Sha256Digest>>,
    /// Where the ACPI digests in RTMR0 come from.
    #[serde(default)]
    pub acpi: AcpiRule,
    /// The only guest instances accepted, by their receipt key. Without it, and without a list of platforms, a
    /// connection diverted to a second genuine guest is not noticed: the verdict then says `instance: any`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<Vec<Hex32>>,
    /// Which GPUs are accepted, and how many there must be. Without it, a guest with a GPU is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuPolicy>,
    /// Rules of the owner's own. They run where everything else accepts, and can only refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<RuleSource>,
}

/// Where the expected ACPI digests in RTMR0 come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AcpiRule {
    /// From the release: a guest whose shape it has no ACPI reference for is refused.
    #[default]
    Published,
    /// From the release, else from the guest's own firmware event log, if that replays to the quoted RTMR0 to RTMR2.
    /// Weaker: the host may then have given any ACPI tables. Everything else stays fixed by the release, and the verdict
    /// says which rule was used.
    FromEventLog,
}

impl AcpiRule {
    /// The name, as policies and verdicts have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::FromEventLog => "from-event-log",
        }
    }
}

/// Why a policy was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// More than [`MAX_POLICY_LEN`] bytes.
    #[error("a policy has at most {MAX_POLICY_LEN} bytes, found {0}")]
    TooLarge(usize),
    /// Not JSON of the policy's form.
    #[error("the policy is malformed: {0}")]
    Malformed(String),
    /// Another schema.
    #[error("the field schema must be \"{}\"", Policy::SCHEMA)]
    Schema,
    /// A list that accepts nothing.
    #[error("the list {0} is empty: nothing would be accepted; leave it out for any")]
    Empty(&'static str),
    /// The part `gpu`.
    #[error("gpu: {0}")]
    Gpu(String),
    /// The part `rules`.
    #[error("rules.{field} must be {rule}")]
    Rules {
        /// Which field.
        field: &'static str,
        /// What it must be.
        rule: &'static str,
    },
}

impl Policy {
    /// Value of the field `schema`.
    pub const SCHEMA: &str = "chrysalis/appraisal-policy/v1";

    /// Accepts every verified release, model and service, on any platform that is up to date.
    #[must_use]
    pub fn any_release() -> Self {
        Self {
            schema: Self::SCHEMA.to_owned(),
            platform: PlatformPolicy::default(),
            releases: None,
            revoked_releases: Vec::new(),
            models: None,
            service_pins: None,
            acpi: AcpiRule::Published,
            instances: None,
            gpu: None,
            rules: None,
        }
    }

    /// Reads and checks a policy.
    ///
    /// # Errors
    /// [`PolicyError`] names the rule.
    pub fn from_json(bytes: &[u8]) -> Result<Self, PolicyError> {
        if bytes.len() > MAX_POLICY_LEN {
            return Err(PolicyError::TooLarge(bytes.len()));
        }
        // A policy is its owner's own file: the message may name its fields.
        let malformed = |e: serde_json::Error| PolicyError::Malformed(e.to_string());
        let policy: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        check_objects(&serde_json::from_slice(bytes).map_err(malformed)?)?;
        if policy.schema != Self::SCHEMA {
            return Err(PolicyError::Schema);
        }
        let empty = |list: Option<usize>| list == Some(0);
        for (name, len) in [
            ("platform.tcb", Some(policy.platform.tcb.len())),
            ("platform.platforms", policy.platform.platforms.as_ref().map(Vec::len)),
            ("platform.quote_versions", policy.platform.quote_versions.as_ref().map(Vec::len)),
            ("releases", policy.releases.as_ref().map(Vec::len)),
            ("models", policy.models.as_ref().map(Vec::len)),
            ("service_pins", policy.service_pins.as_ref().map(Vec::len)),
            ("instances", policy.instances.as_ref().map(Vec::len)),
        ] {
            if empty(len) {
                return Err(PolicyError::Empty(name));
            }
        }
        policy.gpu.as_ref().map_or(Ok(()), GpuPolicy::check).map_err(|error| PolicyError::Gpu(error.to_string()))?;
        policy.rules.as_ref().map_or(Ok(()), check_rules)?;
        Ok(policy)
    }

    /// True when the policy names the platforms or the instances that it accepts.
    #[must_use]
    pub const fn pins_instance(&self) -> bool {
        self.instances.is_some() || self.platform.platforms.is_some()
    }
}

/// Serde also reads structures from lists of their values; a policy is written with names.
fn check_objects(policy: &Value) -> Result<(), PolicyError> {
    let part = |name: &str| policy.get(name).filter(|part| !part.is_null());
    let each = |list: Option<&Value>| list.and_then(Value::as_array).cloned().unwrap_or_default();
    let tcb = each(part("platform").and_then(|platform| platform.get("tcb")));
    let listed = tcb.iter().chain(part("models").and_then(Value::as_array).into_iter().flatten());
    let mut parts = ["platform", "gpu", "rules"].into_iter().filter_map(part).chain([policy]).chain(listed);
    match parts.all(Value::is_object) {
        true => Ok(()),
        false => Err(PolicyError::Malformed("a list stands where an object must stand".to_owned())),
    }
}

fn check_rules(rules: &RuleSource) -> Result<(), PolicyError> {
    let RuleSource { engine: RuleEngine::Cedar4, claims, source } = rules;
    if claims != Claims::SCHEMA {
        return Err(PolicyError::Rules { field: "claims", rule: "\"chrysalis/claims/v1\"" });
    }
    if !(1..=MAX_RULES).contains(&source.chars().count()) {
        return Err(PolicyError::Rules { field: "source", rule: "1 to 16384 characters" });
    }
    Ok(())
}

/// Most bytes of a policy.
pub const MAX_POLICY_LEN: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_strict_and_unknown_fields_refused() {
        let minimal = format!("{{ \"schema\": \"{}\" }}", Policy::SCHEMA);
        assert_eq!(Policy::from_json(minimal.as_bytes()).unwrap(), Policy::any_release());
        for bad in [
            "\"allow_simulated\":true",
            "\"platform\":{\"allow_debug\":true}",
            "\"models\":[\"m\"]",
            "\"acpi\":\"any\"",
        ] {
            let text = format!("{{\"schema\":\"{}\",{bad}}}", Policy::SCHEMA);
            assert!(matches!(Policy::from_json(text.as_bytes()), Err(PolicyError::Malformed(_))), "{bad}");
        }
        for list in ["\"releases\":[]", "\"instances\":[]", "\"platform\":{\"tcb\":[]}"] {
            let text = format!("{{\"schema\":\"{}\",{list}}}", Policy::SCHEMA);
            assert!(matches!(Policy::from_json(text.as_bytes()), Err(PolicyError::Empty(_))), "{list}");
        }
        assert_eq!(Policy::from_json(b"{\"schema\":\"x\"}"), Err(PolicyError::Schema));
    }

    #[test]
    fn the_part_about_gpus_has_the_rules_of_its_own_form() {
        let mut policy = Policy { gpu: Some(GpuPolicy::strict()), ..Policy::any_release() };
        let read = |policy: &Policy| Policy::from_json(&serde_json::to_vec(policy).unwrap());
        assert_eq!(read(&policy).unwrap(), policy);
        policy.gpu = Some(GpuPolicy { modes: Vec::new(), ..GpuPolicy::strict() });
        assert!(matches!(read(&policy), Err(PolicyError::Gpu(_))));
    }
}
