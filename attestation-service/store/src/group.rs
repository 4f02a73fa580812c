// SPDX-License-Identifier: Apache-2.0
//! Group commit: callers that come while a write is being synced share the next one.
//!
//! There is no thread of its own: the first caller leads, takes everything that waits, and does it in one write; who
//! comes meanwhile waits for the next leader, which is one of them. Whose item did not fit into the batch leads again.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Work of many callers that is done together.
pub(crate) struct Group<T, R> {
    state: Mutex<State<T, R>>,
    changed: Condvar,
}

/// The leader panicked: what became of the work is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost;

struct State<T, R> {
    next: u64,
    waiting: Vec<(u64, T)>,
    done: BTreeMap<u64, Result<R, Lost>>,
    leading: bool,
}

impl<T, R> Group<T, R> {
    pub(crate) const fn new() -> Self {
        let state = State { next: 0, waiting: Vec::new(), done: BTreeMap::new(), leading: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Has `item` done, by this caller's `work` or another's, in the order of the calls, and gives its result. `work`
    /// gets 1 to [`MAX_BATCH`] items and gives a result for each; it is called until `item` is done.
    pub(crate) fn submit(&self, item: T, mut work: impl FnMut(Vec<T>) -> Vec<R>) -> Result<R, Lost> {
        let mut state = self.lock();
        let ticket = state.next;
        state.next = state.next.wrapping_add(1);
        state.waiting.push((ticket, item));
        loop {
            if let Some(result) = state.done.remove(&ticket) {
                return result;
            }
            if state.leading {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // Not done, and nobody does it: it waits, so there is at least one to take.
            let take = state.waiting.len().min(MAX_BATCH);
            let (tickets, items): (Vec<_>, Vec<_>) = state.waiting.drain(..take).unzip();
            state.leading = true;
            drop(state);
            let mut lead = Lead { group: self, tickets, results: Vec::new() };
            lead.results = work(items);
            drop(lead);
            state = self.lock();
        }
    }

    /// The state is whole between any two of its changes: a panic of another thread leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, State<T, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One turn of leading. Its end, a panic included, gives every ticket its result.
struct Lead<'a, T, R> {
    group: &'a Group<T, R>,
    tickets: Vec<u64>,
    results: Vec<R>,
}

impl<T, R> Drop for Lead<'_, T, R> {
    fn drop(&mut self) {
        let mut state = self.group.lock();
        state.leading = false;
        let mut results = core::mem::take(&mut self.results).into_iter();
        for ticket in core::mem::take(&mut self.tickets) {
            state.done.insert(ticket, results.next().ok_or(Lost));
        }
        drop(state);
        self.group.changed.notify_all();
    }
}

/// Most items of one write.
pub(crate) const MAX_BATCH: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    /// Has `callers` items done behind a first one that takes until all of them wait; gives the batches' sizes.
    fn batches(callers: u32) -> Vec<usize> {
        let (group, sizes) = (Group::new(), Mutex::new(Vec::new()));
        let submit = |item: u32| {
            let result = group.submit(item, |items: Vec<u32>| {
                while items == [0] && group.lock().waiting.len() < callers as usize {
                    std::thread::yield_now();
                }
                sizes.lock().unwrap().push(items.len());
                items.into_iter().map(|item| item * 2).collect()
            });
            assert_eq!(result, Ok(item * 2));
        };
        std::thread::scope(|scope| {
            scope.spawn(|| submit(0));
            while !group.lock().leading {
                std::thread::yield_now();
            }
            for item in 1..=callers {
                scope.spawn(move || submit(item));
            }
        });
        assert!(group.lock().done.is_empty() && group.lock().waiting.is_empty());
        sizes.into_inner().unwrap()
    }

    #[test]
    fn who_waits_shares_a_batch_and_gets_the_result_of_their_own_item() {
        assert_eq!(batches(32), [1, 32]);
    }

    /// More waiting than a batch holds: nobody is forgotten, and no batch is too large.
    #[test]
    fn batches_have_a_limit() {
        assert_eq!(batches(MAX_BATCH as u32 + 100), [1, MAX_BATCH, 100]);
    }

    /// The only caller that could lead is behind a whole batch of others'.
    #[test]
    fn a_leader_leads_until_its_own_item_is_done() {
        let group = Group::new();
        {
            let mut state = group.lock();
            state.next = MAX_BATCH as u64;
            state.waiting = (0..MAX_BATCH as u64).map(|ticket| (ticket, 0)).collect();
        }
        let mut sizes = Vec::new();
        let result = group.submit(7, |items: Vec<u32>| {
            sizes.push(items.len());
            items
        });
        assert_eq!((result, sizes), (Ok(7), vec![MAX_BATCH, 1]));
    }

    #[test]
    fn a_leader_that_panics_fails_its_batch_and_nothing_else() {
        let group: Group<u32, u32> = Group::new();
        let panicked =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| group.submit(1, |_| panic!("as asked"))));
        assert!(panicked.is_err());
        assert_eq!(group.submit(2, |items| items), Ok(2));
        assert_eq!(group.submit(3, |_| Vec::new()), Err(Lost), "no result is no success");
    }
}
