// SPDX-License-Identifier: Apache-2.0
//! Rules over bytes.

use crate::{Json, SchemaError, build::Builder, schema};

/// A context-free grammar over bytes, made by this crate alone: no rule calls itself before it has taken a byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grammar {
    pub(crate) rules: Vec<Vec<Vec<Symbol>>>,
    pub(crate) root: RuleId,
}

pub(crate) type RuleId = u32;

/// A part of an alternative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Symbol {
    /// Any byte from the first to the last.
    Bytes(u8, u8),
    /// Another rule.
    Rule(RuleId),
}

impl Grammar {
    /// Any JSON value that a schema accepts, in compact form: at most one space after `{`, `[`, `,` and `:`.
    ///
    /// # Errors
    /// [`SchemaError`] names the keyword and where it stands.
    pub fn of_schema(schema: &Json) -> Result<Self, SchemaError> {
        let mut rules = schema::MAX_RULES;
        Self::of_schema_within(schema, &mut rules)
    }

    /// As [`Grammar::of_schema`], for one of several schemas that may together cost so many rules: what this one costs,
    /// accepted or not, is taken from `rules`.
    ///
    /// # Errors
    /// As [`Grammar::of_schema`]; [`SchemaError::TooLarge`] also when `rules` are not enough.
    pub fn of_schema_within(schema: &Json, rules: &mut usize) -> Result<Self, SchemaError> {
        schema::compile(schema, rules)
    }

    /// Any JSON object, in the same form.
    #[must_use]
    pub fn of_any_object() -> Self {
        let mut builder = Builder::new();
        let root = builder.any_object();
        builder.finish(root)
    }

    /// Free text in which each `<tool_call>` opens a value of `self`, and `</tool_call>` must follow it. Line breaks
    /// around the value are allowed.
    #[must_use]
    pub fn within_tool_calls(self) -> Self {
        Builder::from(self).tool_calls()
    }

    pub(crate) fn alternatives(&self, rule: RuleId) -> &[Vec<Symbol>] {
        usize::try_from(rule).ok().and_then(|rule| self.rules.get(rule)).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn symbol(&self, rule: RuleId, alternative: u32, position: u32) -> Option<Symbol> {
        let symbols = self.alternatives(rule).get(usize::try_from(alternative).ok()?)?;
        symbols.get(usize::try_from(position).ok()?).copied()
    }
}
