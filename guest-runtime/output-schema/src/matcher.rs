// SPDX-License-Identifier: Apache-2.0
//! Follows a text through a grammar.

use crate::{
    SchemaError,
    expand::{Expansion, Frame, expand},
    grammar::{Grammar, Symbol},
};
use std::{collections::HashMap, rc::Rc};

/// All the places in a grammar where a text may stand.
///
/// What follows a byte is computed once and kept, so that many texts can be tried cheaply. What is computed between two
/// calls of [`Matcher::take`] has a bound, whatever the grammar; beyond it, what is not known yet counts as not allowed.
/// So the cost of a step has a bound, and the result depends on nothing but the grammar and the calls.
#[derive(Debug, Clone)]
pub struct Matcher {
    grammar: Rc<Grammar>,
    states: Vec<State>,
    known: HashMap<Rc<Expansion>, StateId>,
    /// Places in all states together.
    places: usize,
    /// Where the text stands.
    at: StateId,
    /// What may still be computed before the next [`Matcher::take`].
    allowance: usize,
}

type StateId = u32;

#[derive(Debug, Clone)]
struct State {
    expansion: Rc<Expansion>,
    /// What follows each byte, where that is known.
    next: Vec<Next>,
}

#[derive(Debug, Clone, Copy)]
enum Next {
    Unknown,
    Refused,
    State(StateId),
}

impl Matcher {
    /// Stands at the start.
    ///
    /// # Errors
    /// [`SchemaError::TooLarge`]: the grammar has too many ways to begin.
    pub fn new(grammar: Grammar) -> Result<Self, SchemaError> {
        let grammar = Rc::new(grammar);
        let (start, _) = expand(&grammar, grammar.start(), MAX_WORK);
        let start = start.ok_or(SchemaError::TooLarge)?;
        let mut matcher =
            Self { grammar, states: Vec::new(), known: HashMap::new(), places: 0, at: 0, allowance: ALLOWANCE };
        matcher.at = matcher.state(start);
        Ok(matcher)
    }

    /// Takes bytes if they can stand here; otherwise nothing changes.
    pub fn take(&mut self, bytes: &[u8]) -> bool {
        let taken = self.after(bytes);
        self.allowance = ALLOWANCE;
        self.at = taken.unwrap_or(self.at);
        if self.states.len() > MAX_STATES || self.places > MAX_KEPT_PLACES {
            self.forget_others();
        }
        taken.is_some()
    }

    /// Whether bytes can stand here.
    #[must_use]
    pub fn allows(&mut self, bytes: &[u8]) -> bool {
        self.after(bytes).is_some()
    }

    /// Which bytes can come next: a table that costs next to nothing.
    #[must_use]
    pub fn first_bytes(&self) -> Vec<bool> {
        let mut allowed = vec![false; BYTES];
        for frame in self.expansion(self.at).map_or(&[][..], Expansion::places) {
            if let Some((first, last)) = expected(&self.grammar, frame) {
                allowed.get_mut(usize::from(first)..=usize::from(last)).unwrap_or_default().fill(true);
            }
        }
        allowed
    }

    /// Whether the text may end here.
    #[must_use]
    pub fn may_end(&self) -> bool {
        self.expansion(self.at).is_some_and(Expansion::may_end)
    }

    /// Whether the text must end here.
    #[must_use]
    pub fn must_end(&self) -> bool {
        self.expansion(self.at).is_none_or(|expansion| expansion.places().is_empty())
    }

    fn expansion(&self, state: StateId) -> Option<&Expansion> {
        Some(&self.states.get(usize::try_from(state).ok()?)?.expansion)
    }

    fn after(&mut self, bytes: &[u8]) -> Option<StateId> {
        bytes.iter().try_fold(self.at, |state, byte| self.next(state, *byte))
    }

    fn next(&mut self, state: StateId, byte: u8) -> Option<StateId> {
        let index = usize::try_from(state).ok()?;
        match self.states.get(index)?.next.get(usize::from(byte))? {
            Next::State(next) => return Some(*next),
            Next::Refused => return None,
            Next::Unknown => {}
        }
        let expansion = Rc::clone(&self.states.get(index)?.expansion);
        let (same, matching) = matching(&self.grammar, expansion.places(), byte);
        let next = if matching.is_empty() {
            Next::Refused
        } else {
            let starts = matching.into_iter().map(|frame| frame.after()).collect();
            let (reached, cost) = expand(&self.grammar, starts, self.allowance.min(MAX_WORK));
            self.allowance = self.allowance.saturating_sub(cost);
            match reached {
                Some(reached) if reached.is_dead() => Next::Refused,
                Some(reached) => Next::State(self.state(reached)),
                // It would always cost too much.
                None if cost >= MAX_WORK => Next::Refused,
                None => return None,
            }
        };
        let table = &mut self.states.get_mut(index)?.next;
        table.get_mut(usize::from(same.0)..=usize::from(same.1))?.fill(next);
        match next {
            Next::State(next) => Some(next),
            Next::Refused | Next::Unknown => None,
        }
    }

    /// The number of a state, a new one if need be.
    fn state(&mut self, expansion: Expansion) -> StateId {
        if let Some(known) = self.known.get(&expansion) {
            return *known;
        }
        let id = StateId::try_from(self.states.len()).unwrap_or(StateId::MAX);
        self.places = self.places.saturating_add(expansion.places().len());
        let expansion = Rc::new(expansion);
        self.known.insert(Rc::clone(&expansion), id);
        self.states.push(State { expansion, next: vec![Next::Unknown; BYTES] });
        id
    }

    /// Keeps only where the text stands.
    fn forget_others(&mut self) {
        let Some(here) = usize::try_from(self.at).ok().and_then(|at| self.states.get(at)) else { return };
        let here = here.expansion.as_ref().clone();
        (self.states, self.known, self.places) = (Vec::new(), HashMap::new(), 0);
        self.at = self.state(here);
    }
}

fn expected(grammar: &Grammar, frame: &Frame) -> Option<(u8, u8)> {
    match grammar.symbol(frame.rule, frame.alternative, frame.position) {
        Some(Symbol::Bytes(first, last)) => Some((first, last)),
        Some(Symbol::Rule(_)) | None => None,
    }
}

/// The places that expect this byte, and the first and the last byte around it for which they are the same.
fn matching<'p>(grammar: &Grammar, places: &'p [Rc<Frame>], byte: u8) -> ((u8, u8), Vec<&'p Frame>) {
    let (mut from, mut to, mut found) = (0, u8::MAX, Vec::new());
    for frame in places {
        match expected(grammar, frame) {
            Some((_, last)) if last < byte => from = from.max(last.saturating_add(1)),
            Some((first, _)) if first > byte => to = to.min(first.saturating_sub(1)),
            Some((first, last)) => {
                (from, to) = (from.max(first), to.min(last));
                found.push(frame.as_ref());
            }
            None => {}
        }
    }
    ((from, to), found)
}

const BYTES: usize = 256;
/// Most work for one byte, in positions of the grammar. A byte that needs more is refused.
const MAX_WORK: usize = 20_000;
/// Most work between two [`Matcher::take`].
const ALLOWANCE: usize = 50_000;
/// States that are kept, and places in them, before all but one are forgotten.
const MAX_STATES: usize = 512;
const MAX_KEPT_PLACES: usize = 50_000;
