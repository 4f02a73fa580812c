// SPDX-License-Identifier: Apache-2.0
//! A mirror of the model's key-value cache: which slot holds which tokens, and how many cells that takes.

use crate::Token;
use engine_protocol::Tenant;
use std::collections::{BTreeSet, HashMap};

/// A sequence in the cache.
pub type Slot = u16;

/// Slots over one pool of cells. A cell holds one token at one position; slots that were copied from each other share
/// the cells of what they have in common. A new token takes the lowest free cell, as in the model's cache.
#[derive(Debug)]
pub struct Cells {
    /// How many running and how many other slots use each cell.
    uses: Vec<(u16, u16)>,
    free: BTreeSet<u32>,
    /// Used by slots alone that are not running.
    only_kept: usize,
    slots: Vec<Held>,
}

/// What a slot holds.
#[derive(Debug, Default)]
struct Held {
    state: State,
    tenant: Option<Tenant>,
    tokens: Vec<Token>,
    cells: Vec<u32>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Free,
    Running,
    /// Nobody computes here; it is kept for a prompt that begins alike. Last used at this moment.
    Kept {
        used: u64,
    },
    /// Given up: nobody reads it any more. It holds its cells until they are needed, until nothing that grows lies above
    /// them (what grows must not find holes below its end), or until looking past them has cost as much as moving what
    /// lies above.
    Condemned,
}

impl Cells {
    /// An empty cache.
    #[must_use]
    pub fn new(cells: u32, slots: Slot) -> Self {
        Self {
            uses: (0..cells).map(|_| (0, 0)).collect(),
            free: (0..cells).collect(),
            only_kept: 0,
            slots: (0..slots).map(|_| Held::default()).collect(),
        }
    }

    /// Cells that nobody uses.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Cells that can be had without stopping an answer.
    #[must_use]
    pub fn available(&self) -> usize {
        self.free.len().saturating_add(self.only_kept)
    }

    /// Cells that are used.
    #[must_use]
    pub fn used(&self) -> usize {
        self.uses.len().saturating_sub(self.free.len())
    }

    /// Whether no slot holds anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.uses.len()
    }

    /// Tokens in a slot.
    #[must_use]
    pub fn len(&self, slot: Slot) -> usize {
        self.held(slot).map_or(0, |held| held.tokens.len())
    }

    /// A slot that holds nothing.
    pub(crate) fn vacant(&self) -> Option<Slot> {
        self.find(|held| held.state == State::Free)
    }

    /// The kept slot that was used longest ago, other than `spare`.
    pub(crate) fn oldest_kept(&self, spare: Option<Slot>) -> Option<Slot> {
        let used = |slot: &Slot| match self.held(*slot)?.state {
            State::Kept { used } => Some(used),
            State::Free | State::Running | State::Condemned => None,
        };
        self.all().filter(|slot| Some(*slot) != spare && used(slot).is_some()).min_by_key(used)
    }

    /// All slots that are kept for a tenant.
    pub(crate) fn kept_for(&self, tenant: Option<Tenant>) -> Vec<Slot> {
        let kept = |slot: &Slot| {
            let held = self.held(*slot);
            held.is_some_and(|held| {
                matches!(held.state, State::Kept { .. }) && tenant.is_none_or(|t| held.tenant == Some(t))
            })
        };
        self.all().filter(kept).collect()
    }

    /// The slot of this tenant that begins most like `tokens`, and how many tokens that are. A tenant never sees what
    /// another one left.
    pub(crate) fn longest_prefix(
        &self,
        tenant: Tenant,
        tokens: impl Iterator<Item = Token> + Clone,
    ) -> Option<(Slot, usize)> {
        let common = |slot: Slot| {
            let held = self.held(slot).filter(|held| held.tenant == Some(tenant) && held.state != State::Free)?;
            Some((slot, held.tokens.iter().copied().zip(tokens.clone()).take_while(|(a, b)| a == b).count()))
        };
        self.all().filter_map(common).max_by_key(|(slot, length)| (*length, u16::MAX.saturating_sub(*slot)))
    }

    /// Takes a free slot for a sequence.
    pub(crate) fn start(&mut self, slot: Slot, tenant: Tenant) {
        if let Some(held) = self.held_mut(slot) {
            *held = Held { state: State::Running, tenant: Some(tenant), ..Held::default() };
        }
    }

    /// Shares the first `length` tokens of a slot with one that was just started.
    pub(crate) fn share(&mut self, from: Slot, to: Slot, length: usize, now: u64) {
        let Some(source) = self.held_mut(from) else { return };
        if let State::Kept { used } = &mut source.state {
            *used = now;
        }
        let cells: Vec<u32> = source.cells.iter().copied().take(length).collect();
        let tokens = source.tokens.iter().copied().take(length).collect();
        for cell in &cells {
            self.change(*cell, |uses| uses.0 = uses.0.saturating_add(1));
        }
        if let Some(target) = self.held_mut(to) {
            target.tokens = tokens;
            target.cells = cells;
        }
    }

    /// Adds a token to a running slot. `false` when no cell is free.
    pub(crate) fn push(&mut self, slot: Slot, token: Token) -> bool {
        let Some(cell) = self.free.pop_first() else { return false };
        self.change(cell, |uses| uses.0 = 1);
        if let Some(held) = self.held_mut(slot) {
            held.tokens.push(token);
            held.cells.push(cell);
        }
        true
    }

    /// The cell of a slot's last token. Its cells ascend, as long as [`Cells::compact`] is called in time.
    pub(crate) fn last_cell(&self, slot: Slot) -> Option<u32> {
        self.held(slot)?.cells.last().copied()
    }

    /// Whether a slot would get a cell below its last one, if each of these takes so many cells in this order.
    pub(crate) fn would_disorder(&self, takers: &[(Slot, usize)]) -> bool {
        let mut free = self.free.iter();
        takers.iter().any(|(slot, length)| {
            let first = free.next();
            if let Some(skipped) = length.checked_sub(2) {
                free.nth(skipped);
            }
            first.zip(self.last_cell(*slot)).is_some_and(|(first, last)| *first < last)
        })
    }

    /// Moves what is in use to the lowest cells, in the order in which it is.
    pub(crate) fn compact(&mut self) {
        let used: Vec<u32> =
            (0_u32..).zip(&self.uses).filter(|(_, uses)| **uses != (0, 0)).map(|(cell, _)| cell).collect();
        let places: HashMap<u32, u32> = used.iter().copied().zip(0..).collect();
        for cell in self.slots.iter_mut().flat_map(|held| &mut held.cells) {
            *cell = places.get(cell).copied().unwrap_or(*cell);
        }
        let total = self.uses.len();
        self.uses.retain(|uses| *uses != (0, 0));
        self.uses.resize(total, (0, 0));
        self.free = (0_u32..).zip(&self.uses).filter(|(_, uses)| **uses == (0, 0)).map(|(cell, _)| cell).collect();
    }

    /// A running slot becomes a kept one.
    pub(crate) fn keep(&mut self, slot: Slot, now: u64) {
        self.rest(slot, State::Kept { used: now });
    }

    /// Gives up what a slot holds, without freeing its cells.
    pub(crate) fn condemn(&mut self, slot: Slot) {
        match self.held_mut(slot) {
            Some(held) if matches!(held.state, State::Kept { .. }) => held.state = State::Condemned,
            Some(held) if held.state == State::Running => self.rest(slot, State::Condemned),
            _ => return,
        }
        if let Some(held) = self.held_mut(slot) {
            (held.tenant, held.tokens) = (None, Vec::new());
        }
    }

    /// All slots that are kept and were not used since a moment, with their tenants.
    pub(crate) fn unused_since(&self, moment: u64) -> Vec<(Slot, Tenant)> {
        let unused = |slot: Slot| {
            let held = self.held(slot).filter(|held| matches!(held.state, State::Kept { used } if used < moment))?;
            Some((slot, held.tenant?))
        };
        self.all().filter_map(unused).collect()
    }

    /// Cells that freeing what was given up would free, at least.
    pub(crate) fn given_up(&self) -> usize {
        let is_last_use = |cell: &&u32| {
            let uses = usize::try_from(**cell).ok().and_then(|cell| self.uses.get(cell));
            uses == Some(&(0, 1))
        };
        let condemned = self.slots.iter().filter(|held| held.state == State::Condemned);
        condemned.map(|held| held.cells.iter().filter(is_last_use).count()).fold(0, usize::saturating_add)
    }

    /// All slots that were given up.
    pub(crate) fn condemned(&self) -> Vec<Slot> {
        self.all().filter(|slot| self.held(*slot).is_some_and(|held| held.state == State::Condemned)).collect()
    }

    /// Whether freeing a slot's cells leaves no hole below the end of what grows.
    pub(crate) fn is_above_all(&self, slot: Slot) -> bool {
        let frees = |cell: &u32| {
            let uses = usize::try_from(*cell).ok().and_then(|cell| self.uses.get(cell));
            uses.is_some_and(|uses| uses.0.saturating_add(uses.1) <= 1)
        };
        let lowest = self.held(slot).and_then(|held| held.cells.iter().copied().find(frees));
        let growing = self.slots.iter().filter(|held| held.state == State::Running);
        let highest = growing.filter_map(|held| held.cells.last().copied()).max();
        lowest.zip(highest).is_none_or(|(lowest, highest)| lowest > highest)
    }

    /// A running slot is not computed any more.
    fn rest(&mut self, slot: Slot, state: State) {
        let cells = self.held(slot).map(|held| held.cells.clone()).unwrap_or_default();
        for cell in cells {
            self.change(cell, |uses| *uses = (uses.0.saturating_sub(1), uses.1.saturating_add(1)));
        }
        if let Some(held) = self.held_mut(slot) {
            held.state = state;
        }
    }

    /// Empties a slot.
    pub(crate) fn drop(&mut self, slot: Slot) {
        let Some(held) = self.held_mut(slot).map(std::mem::take) else { return };
        for cell in held.cells {
            self.change(cell, |uses| match held.state {
                State::Kept { .. } | State::Condemned => uses.1 = uses.1.saturating_sub(1),
                State::Free | State::Running => uses.0 = uses.0.saturating_sub(1),
            });
        }
    }

    /// Changes the uses of a cell, and the counts with them.
    fn change(&mut self, cell: u32, change: impl FnOnce(&mut (u16, u16))) {
        let Some(uses) = usize::try_from(cell).ok().and_then(|cell| self.uses.get_mut(cell)) else { return };
        let only_kept = |uses: (u16, u16)| uses.0 == 0 && uses.1 > 0;
        let before = *uses;
        change(uses);
        let after = *uses;
        match (only_kept(before), only_kept(after)) {
            (false, true) => self.only_kept = self.only_kept.saturating_add(1),
            (true, false) => self.only_kept = self.only_kept.saturating_sub(1),
            _ => {}
        }
        if after == (0, 0) && before != (0, 0) {
            self.free.insert(cell);
        }
    }

    fn all(&self) -> impl Iterator<Item = Slot> + use<> {
        0..Slot::try_from(self.slots.len()).unwrap_or(Slot::MAX)
    }

    fn find(&self, holds: impl Fn(&Held) -> bool) -> Option<Slot> {
        self.all().find(|slot| self.held(*slot).is_some_and(&holds))
    }

    fn held(&self, slot: Slot) -> Option<&Held> {
        self.slots.get(usize::from(slot))
    }

    fn held_mut(&mut self, slot: Slot) -> Option<&mut Held> {
        self.slots.get_mut(usize::from(slot))
    }
}
