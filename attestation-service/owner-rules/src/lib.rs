// SPDX-License-Identifier: Apache-2.0
//! Owners' own rules in Cedar.
//!
//! Rules are compiled once, against a schema of the claims, and run on accepted appraisals alone. Cedar has no loops, no
//! recursion, no functions of its own, no clock, no randomness and no input but the claims; strings and sets do not grow. What
//! is left, deep nesting and long chains, is capped before Cedar sees the text. Pure: no threads, files or clocks.

mod compile;
mod limits;

use std::str::FromStr as _;

use appraise::{Claims, RuleOutcome, RuleReason, Rules};
use cedar_policy::{
    ActionConstraint, AuthorizationError, Authorizer, Context, Decision, Entities, EntityId, EntityTypeName, EntityUid,
    Policy, PolicySet, PrincipalConstraint, Request, ResourceConstraint,
};

pub use compile::RuleError;
pub use limits::{MAX_DEPTH, MAX_STATEMENTS, MAX_TOKENS};

/// Compiled rules.
#[derive(Debug)]
pub struct CedarRules {
    set: PolicySet,
}

/// What a look at rules, not at any claims, shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remark {
    /// No statement permits anything: they refuse every guest.
    NeverAllow,
    /// Nothing is forbidden, and something is permitted without a condition: they refuse no guest.
    NeverDeny,
    /// A forbidding statement has no `@reason`: its refusals say nothing of why.
    WithoutReason,
}

impl Rules for CedarRules {
    fn judge(&self, claims: &Claims) -> RuleOutcome {
        let Some(request) = request(claims) else { return RuleOutcome::Failed("the claims do not fit the language") };
        let response = Authorizer::new().is_authorized(&request, &self.set, &Entities::empty());
        // A statement that cannot be evaluated is left out by Cedar, which could let something pass: here it refuses.
        let mut errors = response.diagnostics().errors().peekable();
        if errors.peek().is_some() {
            let limit = errors.any(is_limit);
            return if limit { RuleOutcome::Limit(TOO_DEEP) } else { RuleOutcome::Failed("a statement has no value") };
        }
        if response.decision() == Decision::Allow {
            return RuleOutcome::Allowed;
        }
        let named = response.diagnostics().reason().filter_map(|id| self.set.annotation(id, REASON));
        let mut reasons: Vec<_> = named.filter_map(RuleReason::new).collect();
        reasons.sort();
        reasons.dedup();
        RuleOutcome::Denied(reasons)
    }
}

impl CedarRules {
    /// What stands out about the rules as they are written.
    #[must_use]
    pub fn remarks(&self) -> Vec<Remark> {
        use cedar_policy::Effect::{Forbid, Permit};
        let anybody = |policy: &Policy| {
            matches!(policy.principal_constraint(), PrincipalConstraint::Any)
                && matches!(policy.action_constraint(), ActionConstraint::Any)
                && matches!(policy.resource_constraint(), ResourceConstraint::Any)
        };
        let unconditional =
            |policy: &Policy| policy.effect() == Permit && !policy.has_non_scope_constraint() && anybody(policy);
        let mut remarks = Vec::new();
        if !self.set.policies().any(|policy| policy.effect() == Permit) {
            remarks.push(Remark::NeverAllow);
        }
        if !self.set.policies().any(|policy| policy.effect() == Forbid) && self.set.policies().any(unconditional) {
            remarks.push(Remark::NeverDeny);
        }
        if self.set.policies().any(|policy| policy.effect() == Forbid && policy.annotation(REASON).is_none()) {
            remarks.push(Remark::WithoutReason);
        }
        remarks
    }
}

/// The guest is the principal, the moment the action, the model the resource, the claims are the context.
fn request(claims: &Claims) -> Option<Request> {
    let model = claims.model.as_ref()?.to_string();
    let context = Context::from_json_value(serde_json::to_value(claims).ok()?, None).ok()?;
    let principal = entity("Guest", &claims.instance.key.to_string())?;
    let action = entity("Action", &claims.moment)?;
    Request::new(principal, action, entity("Model", &model)?, context, None).ok()
}

fn entity(kind: &str, id: &str) -> Option<EntityUid> {
    Some(EntityUid::from_type_name_and_id(EntityTypeName::from_str(kind).ok()?, EntityId::new(id)))
}

fn is_limit(error: &AuthorizationError) -> bool {
    let AuthorizationError::PolicyEvaluationError(error) = error;
    matches!(error.inner(), cedar_policy::EvaluationError::RecursionLimit(_))
}

/// The annotation that names why a statement forbids.
const REASON: &str = "reason";
const TOO_DEEP: &str = "the rules are nested too deeply";
