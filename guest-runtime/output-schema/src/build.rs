// SPDX-License-Identifier: Apache-2.0
//! Makes rules: JSON's own, literals, repetition.

use crate::{
    SchemaError,
    grammar::{Grammar, RuleId, Symbol},
};

/// Collects rules. Rules that are made once have a number here; [`NONE`] until they are.
pub(crate) struct Builder {
    rules: Vec<Vec<Vec<Symbol>>>,
    root: RuleId,
    space: RuleId,
    character: RuleId,
    string: RuleId,
    value: RuleId,
    object: RuleId,
}

/// A single byte.
pub(crate) fn byte(byte: u8) -> Symbol {
    Symbol::Bytes(byte, byte)
}

/// The bytes of a text.
pub(crate) fn literal(text: &str) -> Vec<Symbol> {
    text.bytes().map(byte).collect()
}

impl From<Grammar> for Builder {
    fn from(grammar: Grammar) -> Self {
        let Grammar { rules, root } = grammar;
        Self { rules, root, space: NONE, character: NONE, string: NONE, value: NONE, object: NONE }
    }
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self::from(Grammar { rules: Vec::new(), root: NONE })
    }

    pub(crate) fn finish(self, root: RuleId) -> Grammar {
        Grammar { rules: self.rules, root }
    }

    pub(crate) fn len(&self) -> usize {
        self.rules.len()
    }

    pub(crate) fn rule(&mut self, alternatives: Vec<Vec<Symbol>>) -> RuleId {
        let id = u32::try_from(self.rules.len()).unwrap_or(NONE);
        self.rules.push(alternatives);
        id
    }

    /// A rule whose alternatives come later: it matches nothing until then.
    pub(crate) fn later(&mut self) -> RuleId {
        self.rule(Vec::new())
    }

    pub(crate) fn set(&mut self, rule: RuleId, alternatives: Vec<Vec<Symbol>>) {
        if let Some(slot) = usize::try_from(rule).ok().and_then(|rule| self.rules.get_mut(rule)) {
            *slot = alternatives;
        }
    }

    /// At most one space.
    pub(crate) fn space(&mut self) -> Symbol {
        if self.space == NONE {
            self.space = self.rule(vec![vec![], vec![byte(b' ')]]);
        }
        Symbol::Rule(self.space)
    }

    /// From `least` to `most` times `item`; without `most` any number. With `separator` between two.
    pub(crate) fn repeat(
        &mut self,
        item: &[Symbol],
        separator: &[Symbol],
        least: usize,
        most: Option<usize>,
    ) -> RuleId {
        let mut next = match most {
            None => {
                let more = self.later();
                self.set(more, vec![[separator, item, &[Symbol::Rule(more)]].concat(), vec![]]);
                more
            }
            Some(_) => self.rule(vec![vec![]]),
        };
        let counted = most.unwrap_or(least.max(1));
        for index in (0..counted).rev() {
            let between = if index == 0 { &[] } else { separator };
            let mut alternatives = vec![[between, item, &[Symbol::Rule(next)]].concat()];
            if index >= least {
                alternatives.push(vec![]);
            }
            next = self.rule(alternatives);
        }
        next
    }

    /// A character of a JSON text, with its escapes, as well-formed UTF-8 (Unicode 16, table 3-7).
    pub(crate) fn character(&mut self) -> Symbol {
        if self.character == NONE {
            let tail = Symbol::Bytes(0x80, 0xbf);
            let hex = Symbol::Rule(self.rule(vec![
                vec![Symbol::Bytes(b'0', b'9')],
                vec![Symbol::Bytes(b'a', b'f')],
                vec![Symbol::Bytes(b'A', b'F')],
            ]));
            let (slash, u) = (byte(b'\\'), byte(b'u'));
            let mut alternatives = vec![
                vec![Symbol::Bytes(0x20, 0x21)],
                vec![Symbol::Bytes(0x23, 0x5b)],
                vec![Symbol::Bytes(0x5d, 0x7f)],
                vec![Symbol::Bytes(0xc2, 0xdf), tail],
                vec![byte(0xe0), Symbol::Bytes(0xa0, 0xbf), tail],
                vec![Symbol::Bytes(0xe1, 0xec), tail, tail],
                vec![byte(0xed), Symbol::Bytes(0x80, 0x9f), tail],
                vec![Symbol::Bytes(0xee, 0xef), tail, tail],
                vec![byte(0xf0), Symbol::Bytes(0x90, 0xbf), tail, tail],
                vec![Symbol::Bytes(0xf1, 0xf3), tail, tail, tail],
                vec![byte(0xf4), Symbol::Bytes(0x80, 0x8f), tail, tail],
                // No surrogates: half a pair is no character.
                vec![slash, u, byte(b'd'), Symbol::Bytes(b'0', b'7'), hex, hex],
                vec![slash, u, byte(b'D'), Symbol::Bytes(b'0', b'7'), hex, hex],
            ];
            alternatives.extend(b"\"\\/bfnrt".iter().map(|escaped| vec![slash, byte(*escaped)]));
            let first = [(b'0', b'9'), (b'a', b'c'), (b'e', b'f'), (b'A', b'C'), (b'E', b'F')];
            alternatives.extend(first.iter().map(|(a, b)| vec![slash, u, Symbol::Bytes(*a, *b), hex, hex, hex]));
            self.character = self.rule(alternatives);
        }
        Symbol::Rule(self.character)
    }

    /// A JSON text of `least` to `most` characters.
    pub(crate) fn string(&mut self, least: usize, most: Option<usize>) -> RuleId {
        let plain = least == 0 && most.is_none();
        if plain && self.string != NONE {
            return self.string;
        }
        let character = self.character();
        let characters = self.repeat(&[character], &[], least, most);
        let string = self.rule(vec![vec![byte(b'"'), Symbol::Rule(characters), byte(b'"')]]);
        if plain {
            self.string = string;
        }
        string
    }

    /// A number; without fraction and exponent where `integer`.
    pub(crate) fn number(&mut self, integer: bool) -> RuleId {
        let digit = Symbol::Bytes(b'0', b'9');
        let digits = Symbol::Rule(self.repeat(&[digit], &[], 0, Some(MAX_DIGITS)));
        let some = Symbol::Rule(self.repeat(&[digit], &[], 1, Some(MAX_DIGITS)));
        let sign = Symbol::Rule(self.rule(vec![vec![], vec![byte(b'-')]]));
        let rest = if integer {
            vec![]
        } else {
            let fraction = self.rule(vec![vec![], vec![byte(b'.'), some]]);
            let plus = Symbol::Rule(self.rule(vec![vec![], vec![byte(b'-')], vec![byte(b'+')]]));
            // At most 99, so that every reader has a number for it.
            let two = Symbol::Rule(self.repeat(&[digit], &[], 1, Some(2)));
            let exponent = self.rule(vec![vec![], vec![byte(b'e'), plus, two], vec![byte(b'E'), plus, two]]);
            vec![Symbol::Rule(fraction), Symbol::Rule(exponent)]
        };
        let zero = [&[sign, byte(b'0')], rest.as_slice()].concat();
        let other = [&[sign, Symbol::Bytes(b'1', b'9'), digits], rest.as_slice()].concat();
        self.rule(vec![zero, other])
    }

    /// An object of any fields whose values follow `value`.
    pub(crate) fn map(&mut self, value: RuleId) -> RuleId {
        let (space, name) = (self.space(), Symbol::Rule(self.string(0, None)));
        let member = [name, byte(b':'), space, Symbol::Rule(value)];
        let members = self.repeat(&member, &[byte(b','), space], 0, None);
        self.rule(vec![vec![byte(b'{'), space, Symbol::Rule(members), byte(b'}')]])
    }

    /// An array of `least` to `most` values.
    pub(crate) fn array(&mut self, item: RuleId, least: usize, most: Option<usize>) -> RuleId {
        let space = self.space();
        let items = self.repeat(&[Symbol::Rule(item)], &[byte(b','), space], least, most);
        self.rule(vec![vec![byte(b'['), space, Symbol::Rule(items), byte(b']')]])
    }

    /// Any object.
    pub(crate) fn any_object(&mut self) -> RuleId {
        self.any_value();
        self.object
    }

    /// Any value.
    pub(crate) fn any_value(&mut self) -> RuleId {
        if self.value == NONE {
            let value = self.later();
            self.value = value;
            self.object = self.map(value);
            let array = self.array(value, 0, None);
            let (string, number) = (self.string(0, None), self.number(false));
            let rules = [self.object, array, string, number].map(|rule| vec![Symbol::Rule(rule)]);
            let words = ["true", "false", "null"].map(literal);
            self.set(value, rules.into_iter().chain(words).collect());
        }
        self.value
    }

    /// See [`Grammar::within_tool_calls`]. A state for each start of the opening mark that the text ends with: the
    /// mark's first character does not return inside it, so after a mismatch there are two places to go.
    pub(crate) fn tool_calls(mut self) -> Grammar {
        let root = self.root;
        let open: &[u8] = OPEN.as_bytes();
        let lines = self.later();
        self.set(lines, vec![vec![byte(b'\n'), Symbol::Rule(lines)], vec![]]);
        let states: Vec<RuleId> = open.iter().map(|_| self.later()).collect();
        let state = |index: usize| Symbol::Rule(states.get(index).copied().unwrap_or(NONE));
        let call =
            [&[Symbol::Rule(lines), Symbol::Rule(root), Symbol::Rule(lines)], literal(CLOSE).as_slice(), &[state(0)]]
                .concat();
        for (index, (rule, expected)) in states.iter().zip(open).enumerate() {
            let reached =
                if index.saturating_add(1) == open.len() { call.clone() } else { vec![state(index.saturating_add(1))] };
            let mut alternatives = vec![vec![], [&[byte(*expected)], reached.as_slice()].concat()];
            if index > 0 {
                alternatives.push(vec![byte(b'<'), state(1)]);
            }
            for (first, last) in others(*expected) {
                alternatives.push(vec![Symbol::Bytes(first, last), state(0)]);
            }
            self.set(*rule, alternatives);
        }
        let root = states.first().copied().unwrap_or(NONE);
        self.finish(root)
    }

    /// Refuses a grammar in which a rule could call itself forever, and drops alternatives that can never end.
    pub(crate) fn check(&mut self, root: RuleId) -> Result<(), SchemaError> {
        let ends = self.fixpoint(|alternative, ends| alternative.iter().all(|symbol| is(symbol, ends, true)))?;
        if !ends.get(usize::try_from(root).unwrap_or(usize::MAX)).copied().unwrap_or(false) {
            return Err(SchemaError::Endless);
        }
        for rule in &mut self.rules {
            rule.retain(|alternative| alternative.iter().all(|symbol| is(symbol, &ends, true)));
        }
        let empty = self.fixpoint(|alternative, empty| alternative.iter().all(|symbol| is(symbol, empty, false)))?;
        if self.has_left_recursion(&empty) { Err(SchemaError::Endless) } else { Ok(()) }
    }

    /// The rules of which an alternative holds, where that depends on other rules.
    fn fixpoint(&self, holds: impl Fn(&[Symbol], &[bool]) -> bool) -> Result<Vec<bool>, SchemaError> {
        let mut found = vec![false; self.rules.len()];
        for _ in 0..MAX_PASSES {
            let mut changed = false;
            for (index, rule) in self.rules.iter().enumerate() {
                if !found.get(index).copied().unwrap_or(true) && rule.iter().any(|one| holds(one, &found)) {
                    changed = true;
                    if let Some(slot) = found.get_mut(index) {
                        *slot = true;
                    }
                }
            }
            if !changed {
                return Ok(found);
            }
        }
        Err(SchemaError::TooLarge)
    }

    /// Takes away, again and again, rules that call no rule first; what is left calls itself.
    fn has_left_recursion(&self, empty: &[bool]) -> bool {
        let mut waits: Vec<usize> = vec![0; self.rules.len()];
        let mut callers: Vec<Vec<usize>> = vec![Vec::new(); self.rules.len()];
        for (index, rule) in self.rules.iter().enumerate() {
            for called in rule.iter().flat_map(|alternative| first_rules(alternative, empty)) {
                if let (Some(count), Some(list)) = (waits.get_mut(index), callers.get_mut(called)) {
                    *count = count.saturating_add(1);
                    list.push(index);
                }
            }
        }
        let mut free: Vec<usize> = (0..waits.len()).filter(|index| waits.get(*index) == Some(&0)).collect();
        let mut left = waits.len();
        while let Some(index) = free.pop() {
            left = left.saturating_sub(1);
            for caller in callers.get(index).into_iter().flatten() {
                if let Some(count) = waits.get_mut(*caller) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        free.push(*caller);
                    }
                }
            }
        }
        left > 0
    }
}

fn is(symbol: &Symbol, of_rules: &[bool], of_bytes: bool) -> bool {
    match symbol {
        Symbol::Bytes(..) => of_bytes,
        Symbol::Rule(rule) => usize::try_from(*rule).ok().and_then(|rule| of_rules.get(rule)).copied().unwrap_or(false),
    }
}

/// The rules that an alternative may call before it has taken a byte.
fn first_rules(alternative: &[Symbol], empty: &[bool]) -> Vec<usize> {
    let mut rules = Vec::new();
    for symbol in alternative {
        if let Symbol::Rule(rule) = symbol {
            rules.extend(usize::try_from(*rule));
        }
        if !is(symbol, empty, false) {
            break;
        }
    }
    rules
}

/// All bytes but `expected` and `<`, as ranges.
fn others(expected: u8) -> Vec<(u8, u8)> {
    let mut holes = [expected, b'<'];
    holes.sort_unstable();
    let mut ranges = Vec::new();
    let mut from = 0_u8;
    for hole in holes {
        if let Some(last) = hole.checked_sub(1).filter(|last| from <= *last) {
            ranges.push((from, last));
        }
        from = hole.saturating_add(1);
    }
    ranges.push((from, u8::MAX));
    ranges
}

const NONE: RuleId = RuleId::MAX;
const MAX_DIGITS: usize = 15;
/// Rules are made before those that use them, but for references of a schema: two passes nearly always.
const MAX_PASSES: usize = 64;
const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
