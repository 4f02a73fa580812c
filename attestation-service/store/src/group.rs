// SPDX-License-Identifier: Apache-2.0
//! Group commit: callers that come while a write is being synced share the next one.
//!
//! There is no thread of its own: the first caller leads, takes everything that waits, and does it in one write; who
//! comes meanwhile waits for the next leader, which is one of them.

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
    /// gets 1 to [`MAX_BATCH`] items and gives a result for each.
    pub(crate) fn submit(&self, item: T, work: impl FnOnce(Vec<T>) -> Vec<R>) -> Result<R, Lost> {
        let mut state = self.lock();
        let ticket = state.next;
        state.next = state.next.wrapping_add(1);
        state.waiting.push((ticket, item));
        let mut work = Some(work);
        loop {
            if let Some(result) = state.done.remove(&ticket) {
                return result;
            }
            match work.take_if(|_| !state.leading) {
                Some(work) => {
                    let take = state.waiting.len().min(MAX_BATCH);
                    let (tickets, items): (Vec<_>, Vec<_>) = state.waiting.drain(..take).unzip();
                    state.leading = true;
                    drop(state);
                    let mut lead = Lead { group: self, tickets, results: Vec::new() };
                    lead.results = work(items);
                    drop(lead);
                    state = self.lock();
                    // More than a batch waited, and this caller's item is not in it: another one leads on.
                    self.changed.notify_all();
                }
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
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
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn everybody_gets_the_result_of_their_own_item() {
        let (group, batches) = (Group::new(), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for caller in 0..32_u32 {
                let (group, batches) = (&group, &batches);
                scope.spawn(move || {
                    for round in 0..20 {
                        let item = caller * 100 + round;
                        let result = group.submit(item, |items: Vec<u32>| {
                            batches.fetch_add(1, Ordering::SeqCst);
                            std::thread::sleep(Duration::from_millis(1));
                            items.into_iter().map(|item| item * 2).collect()
                        });
                        assert_eq!(result, Ok(item * 2));
                    }
                });
            }
        });
        let batches = batches.into_inner();
        assert!(batches < 640, "640 items in {batches} batches");
        assert!(group.lock().done.is_empty() && group.lock().waiting.is_empty());
    }

    /// More waiting than a batch holds: nobody is forgotten, and no batch is too large.
    #[test]
    fn batches_have_a_limit() {
        let group: Group<u32, usize> = Group::new();
        std::thread::scope(|scope| {
            for item in 0..(MAX_BATCH as u32 + 100) {
                let group = &group;
                scope.spawn(move || {
                    let size = group.submit(item, |items| {
                        std::thread::sleep(Duration::from_millis(20));
                        vec![items.len(); items.len()]
                    });
                    assert!((1..=MAX_BATCH).contains(&size.unwrap()));
                });
            }
        });
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
