// SPDX-License-Identifier: Apache-2.0
//! From text to rules that can be run: measured, parsed, and held against the schema of the claims.

use std::{str::FromStr as _, sync::LazyLock};

use appraise::{RuleEngine, RuleReason, RuleSource};
use cedar_policy::{PolicySet, Schema, ValidationMode, Validator};

use crate::{CedarRules, REASON, limits};

/// Why rules were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// A cap.
    #[error("rules have at most {most} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many.
        most: usize,
    },
    /// Not Cedar.
    #[error("the rules are malformed: {0}")]
    Parse(String),
    /// A template: there is nobody to fill it in.
    #[error("rules have no templates (?principal, ?resource)")]
    Template,
    /// No statement at all.
    #[error("there is no statement: every guest would be refused")]
    None,
    /// An annotation that means nothing here.
    #[error("the annotation @{0} is not known; statements have @id and @reason")]
    Annotation(String),
    /// A reason that could carry text.
    #[error("@reason must be 1 to 64 characters of a-z, 0-9 and _")]
    Reason,
    /// It does not fit the claims: a name that is not there, a type that does not fit, a part used without `has`.
    #[error("the rules do not fit the claims: {0}")]
    Schema(String),
    /// The schema of the claims itself; a fault of this program.
    #[error("the schema of the claims cannot be read")]
    Program,
}

impl CedarRules {
    /// Compiles the rules of a policy. Strict: what could fail on some claims, but for arithmetic that overflows, is refused
    /// here.
    ///
    /// # Errors
    /// [`RuleError`].
    pub fn compile(rules: &RuleSource) -> Result<Self, RuleError> {
        let RuleSource { engine: RuleEngine::Cedar4, claims: _, source } = rules;
        limits::check(source)?;
        let set = PolicySet::from_str(source).map_err(|error| RuleError::Parse(clip(&error.to_string())))?;
        if set.num_of_templates() > 0 {
            return Err(RuleError::Template);
        }
        if set.num_of_policies() == 0 {
            return Err(RuleError::None);
        }
        for (name, value) in set.policies().flat_map(|policy| policy.annotations()) {
            match name {
                REASON if RuleReason::new(value).is_none() => return Err(RuleError::Reason),
                REASON | "id" => {}
                other => return Err(RuleError::Annotation(clip(other))),
            }
        }
        let schema = CLAIMS.clone().ok_or(RuleError::Program)?;
        let found = Validator::new(schema).validate(&set, ValidationMode::Strict);
        match found.validation_errors().next() {
            Some(error) => Err(RuleError::Schema(clip(&error.to_string()))),
            None => Ok(Self { set }),
        }
    }
}

fn clip(text: &str) -> String {
    text.chars().take(300).collect()
}

/// Cedar's schema of the claims.
pub(crate) const SCHEMA: &str = include_str!("../../../docs/schemas/claims-v1.cedarschema");

static CLAIMS: LazyLock<Option<Schema>> =
    LazyLock::new(|| Schema::from_cedarschema_str(SCHEMA).ok().map(|(schema, _)| schema));
