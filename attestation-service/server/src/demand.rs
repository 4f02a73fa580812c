// SPDX-License-Identifier: Apache-2.0
//! A policy with its rules compiled: what the service or the owner of a model demands.

use std::{collections::BTreeMap, sync::Arc};

use appraise::{Policy, PolicyError, Rules};
use owner_rules::{CedarRules, RuleError};
use types::Sha256Digest;

/// A policy that can be judged by.
#[derive(Debug, Clone)]
pub(crate) struct Demand {
    pub(crate) policy: Policy,
    rules: Option<Arc<CedarRules>>,
    /// SHA-256 of the policy's bytes, as they were set or signed.
    pub(crate) digest: Sha256Digest,
}

/// Why a policy can't be judged by.
#[derive(Debug, thiserror::Error)]
pub enum DemandError {
    /// The policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Its rules.
    #[error("rules.source: {0}")]
    Rules(#[from] RuleError),
}

/// Rules that were compiled before, by the digest of the policy that they stand in.
pub(crate) type Compiled = BTreeMap<Sha256Digest, Arc<CedarRules>>;

impl Demand {
    /// Reads a policy and compiles its rules, unless they are among those that were compiled `before`.
    pub(crate) fn read(bytes: &[u8], before: &Compiled) -> Result<Self, DemandError> {
        let policy = Policy::from_json(bytes)?;
        let digest = Sha256Digest::of(bytes);
        let rules = match (&policy.rules, before.get(&digest)) {
            (None, _) => None,
            (Some(_), Some(compiled)) => Some(Arc::clone(compiled)),
            (Some(source), None) => Some(Arc::new(CedarRules::compile(source)?)),
        };
        Ok(Self { policy, rules, digest })
    }

    /// The rules, to be run.
    pub(crate) fn rules(&self) -> Option<&dyn Rules> {
        self.rules.as_deref().map(|rules| -> &dyn Rules { rules })
    }

    /// For the next time.
    pub(crate) fn compiled(&self) -> Option<(Sha256Digest, Arc<CedarRules>)> {
        self.rules.as_ref().map(|rules| (self.digest, Arc::clone(rules)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_compiled_once_for_the_same_policy() {
        let policy = |condition: &str| {
            let source = format!("permit(principal, action, resource) when {{ {condition} }};");
            let rules = serde_json::json!({ "engine": "cedar-4", "claims": "chrysalis/claims/v1", "source": source });
            serde_json::json!({ "schema": Policy::SCHEMA, "rules": rules }).to_string().into_bytes()
        };
        let first = Demand::read(&policy("context.bound"), &Compiled::new()).unwrap();
        let known: Compiled = first.compiled().into_iter().collect();
        let same = |demand: &Demand| Arc::ptr_eq(demand.rules.as_ref().unwrap(), first.rules.as_ref().unwrap());
        assert!(same(&Demand::read(&policy("context.bound"), &known).unwrap()));
        assert!(!same(&Demand::read(&policy("!context.bound"), &known).unwrap()));
        assert!(matches!(Demand::read(&policy("context.nothing"), &known), Err(DemandError::Rules(_))));
        let without = format!("{{\"schema\":\"{}\"}}", Policy::SCHEMA);
        assert!(Demand::read(without.as_bytes(), &known).unwrap().rules().is_none());
    }
}
