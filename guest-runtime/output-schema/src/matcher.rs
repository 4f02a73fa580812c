// SPDX-License-Identifier: Apache-2.0
//! Follows a text through a grammar.

use crate::grammar::{Grammar, RuleId, Symbol};
use std::rc::Rc;

/// All the places in a grammar where a text may stand. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Matcher {
    grammar: Rc<Grammar>,
    /// Each expects a range of bytes next, or is the end (`None`).
    places: Vec<Place>,
}

/// A stack of unfinished alternatives; the top one expects a byte.
type Place = Option<Rc<Frame>>;

#[derive(Debug, PartialEq, Eq)]
struct Frame {
    rule: RuleId,
    alternative: u32,
    position: u32,
    depth: u32,
    below: Place,
}

impl Matcher {
    /// Stands at the start.
    #[must_use]
    pub fn new(grammar: Grammar) -> Self {
        let grammar = Rc::new(grammar);
        let mut places = Vec::new();
        enter(&grammar, grammar.root, &None, &mut places);
        Self { grammar, places }
    }

    /// Takes bytes if they can stand here; otherwise nothing changes.
    pub fn take(&mut self, bytes: &[u8]) -> bool {
        match self.after(bytes) {
            Some(places) => {
                self.places = places;
                true
            }
            None => false,
        }
    }

    /// Whether bytes can stand here.
    #[must_use]
    pub fn allows(&self, bytes: &[u8]) -> bool {
        self.after(bytes).is_some()
    }

    /// Whether the text may end here.
    #[must_use]
    pub fn may_end(&self) -> bool {
        self.places.iter().any(Option::is_none)
    }

    /// Whether the text must end here.
    #[must_use]
    pub fn must_end(&self) -> bool {
        self.places.iter().all(Option::is_none)
    }

    fn after(&self, bytes: &[u8]) -> Option<Vec<Place>> {
        let mut places = self.places.clone();
        for byte in bytes {
            let mut next = Vec::new();
            for frame in places.iter().flatten() {
                if expects(&self.grammar, frame, *byte) {
                    advance(&self.grammar, frame, &mut next);
                }
            }
            if next.is_empty() || next.len() > MAX_PLACES {
                return None;
            }
            places = next;
        }
        Some(places)
    }
}

fn expects(grammar: &Grammar, frame: &Frame, byte: u8) -> bool {
    let symbol = grammar.symbol(frame.rule, frame.alternative, frame.position);
    matches!(symbol, Some(Symbol::Bytes(first, last)) if (first..=last).contains(&byte))
}

/// All places that can follow when the byte that `frame` expects has come.
fn advance(grammar: &Grammar, frame: &Frame, into: &mut Vec<Place>) {
    stand(grammar, frame.rule, frame.alternative, frame.position.saturating_add(1), &frame.below, into);
}

/// All places in which a rule can begin.
fn enter(grammar: &Grammar, rule: RuleId, below: &Place, into: &mut Vec<Place>) {
    for alternative in 0..u32::try_from(grammar.alternatives(rule).len()).unwrap_or(0) {
        stand(grammar, rule, alternative, 0, below, into);
    }
}

/// Goes on from a position until a byte is expected. A grammar of this crate ends this: rules that can be empty are
/// few on a path, and none calls itself before it has taken a byte.
fn stand(grammar: &Grammar, rule: RuleId, alternative: u32, position: u32, below: &Place, into: &mut Vec<Place>) {
    let after = position.saturating_add(1);
    match grammar.symbol(rule, alternative, position) {
        Some(Symbol::Bytes(..)) => {
            push(frame(rule, alternative, position, below), into);
        }
        // The last call leaves no frame, so that repetition does not grow the stack.
        Some(Symbol::Rule(inner)) if grammar.symbol(rule, alternative, after).is_none() => {
            enter(grammar, inner, below, into);
        }
        Some(Symbol::Rule(inner)) => {
            let here = frame(rule, alternative, after, below);
            if here.as_ref().is_some_and(|frame| frame.depth <= MAX_STACK) {
                enter(grammar, inner, &here, into);
            }
        }
        None => match below {
            Some(frame) => {
                stand(grammar, frame.rule, frame.alternative, frame.position, &frame.below, into);
            }
            None => push(None, into),
        },
    }
}

fn frame(rule: RuleId, alternative: u32, position: u32, below: &Place) -> Place {
    let depth = below.as_ref().map_or(0, |frame| frame.depth).saturating_add(1);
    Some(Rc::new(Frame { rule, alternative, position, depth, below: below.clone() }))
}

fn push(place: Place, into: &mut Vec<Place>) {
    if into.len() <= MAX_PLACES && !into.contains(&place) {
        into.push(place);
    }
}

/// Most places at once; a text that would stand in more is refused.
const MAX_PLACES: usize = 300;
/// Deepest stack: some forty levels of nested JSON. A deeper text is refused.
const MAX_STACK: u32 = 160;
