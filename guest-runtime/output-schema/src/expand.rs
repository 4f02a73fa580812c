// SPDX-License-Identifier: Apache-2.0
//! Which bytes can follow, from some positions of a grammar on.

use crate::grammar::{Grammar, RuleId, Symbol};
use std::{
    collections::HashSet,
    hash::{Hash, Hasher},
    rc::Rc,
};

/// A position in an alternative, and what comes after the alternative. Equal ones have equal `hash`.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) rule: RuleId,
    pub(crate) alternative: u32,
    pub(crate) position: u32,
    /// Frames from here on.
    depth: u32,
    hash: u64,
    below: Below,
}

/// The rest of the stack; nothing where the text ends.
type Below = Option<Rc<Frame>>;

/// Where a text may stand: the positions that expect a byte, each once, and whether it may end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Expansion {
    places: Vec<Rc<Frame>>,
    may_end: bool,
}

impl Expansion {
    pub(crate) fn places(&self) -> &[Rc<Frame>] {
        &self.places
    }

    pub(crate) fn may_end(&self) -> bool {
        self.may_end
    }

    /// Whether nothing can follow, not even the end.
    pub(crate) fn is_dead(&self) -> bool {
        self.places.is_empty() && !self.may_end
    }
}

impl Frame {
    fn new(rule: RuleId, alternative: u32, position: u32, below: &Below) -> Self {
        let (depth, hash) = below.as_ref().map_or((0, 0), |below| (below.depth, below.hash));
        let depth = depth.saturating_add(1);
        let mut mixed = hash;
        for part in [rule, alternative, position] {
            mixed = (mixed ^ u64::from(part)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed ^= mixed >> 29;
        }
        Self { rule, alternative, position, depth, hash: mixed, below: below.clone() }
    }

    /// The position behind the symbol here.
    pub(crate) fn after(&self) -> Self {
        Self::new(self.rule, self.alternative, self.position.saturating_add(1), &self.below)
    }
}

impl PartialEq for Frame {
    fn eq(&self, other: &Self) -> bool {
        let own = (self.hash, self.depth, self.rule, self.alternative, self.position);
        own == (other.hash, other.depth, other.rule, other.alternative, other.position)
            && match (&self.below, &other.below) {
                (None, None) => true,
                (Some(own), Some(other)) => Rc::ptr_eq(own, other) || own == other,
                _ => false,
            }
    }
}

impl Eq for Frame {}

impl Hash for Frame {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Grammar {
    /// Where a text begins.
    pub(crate) fn start(&self) -> Vec<Frame> {
        self.entries(self.root, &None).collect()
    }

    fn entries(&self, rule: RuleId, below: &Below) -> impl Iterator<Item = Frame> {
        let count = u32::try_from(self.alternatives(rule).len()).unwrap_or(0);
        (0..count).map(move |alternative| Frame::new(rule, alternative, 0, below))
    }
}

/// Goes on from positions until bytes are expected. Each position is looked at once however many ways lead to it, so
/// the work is that of the grammar's size, not of its paths; no recursion, whatever the grammar.
///
/// Gives nothing when that takes more than `most` steps; and how many it took.
pub(crate) fn expand(grammar: &Grammar, starts: Vec<Frame>, most: usize) -> (Option<Expansion>, usize) {
    let (mut places, mut may_end, mut work) = (Vec::new(), false, 0_usize);
    let mut open: Vec<Rc<Frame>> = starts.into_iter().rev().map(Rc::new).collect();
    let mut seen: HashSet<Rc<Frame>> = HashSet::new();
    while let Some(frame) = open.pop() {
        work = work.saturating_add(1);
        if work > most || open.len() > most {
            return (None, work.max(most));
        }
        if !seen.insert(Rc::clone(&frame)) {
            continue;
        }
        match grammar.symbol(frame.rule, frame.alternative, frame.position) {
            Some(Symbol::Bytes(..)) => places.push(frame),
            Some(Symbol::Rule(inner)) => {
                let after = frame.after();
                // The last call leaves no frame, so that repetition does not grow the stack.
                let is_last = grammar.symbol(after.rule, after.alternative, after.position).is_none();
                let below = if is_last { frame.below.clone() } else { Some(Rc::new(after)) };
                if below.as_ref().is_none_or(|below| below.depth <= MAX_STACK) {
                    let from = open.len();
                    open.extend(grammar.entries(inner, &below).map(Rc::new));
                    open.get_mut(from..).unwrap_or_default().reverse();
                }
            }
            None => match &frame.below {
                Some(below) => open.push(Rc::clone(below)),
                None => may_end = true,
            },
        }
    }
    (Some(Expansion { places, may_end }), work)
}

/// Deepest stack: some forty levels of nested JSON. A deeper text is refused.
const MAX_STACK: u32 = 160;
