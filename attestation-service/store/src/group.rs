// SPDX-License-Identifier: Apache-2.0
//! Group commit: callers that come while a write is being synced share the next one.
//!
//! There is no thread of its own: the first caller leads, takes everything that waits, and does it in one write; who
//! comes meanwhile waits. At the end of a write its callers are woken, and the first of the others leads the next: nobody
//! is woken for nothing. Whose item did not fit into the batch leads or waits again.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Work of many callers that is done together.
pub(crate) struct Group<T, R> {
    state: Mutex<State<T, R>>,
}

/// The leader panicked: what became of the work is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost;

struct State<T, R> {
    waiting: Vec<(Arc<Seat<R>>, T)>,
    /// Somebody leads, or was told to.
    leading: bool,
}

/// Where one caller waits.
struct Seat<R> {
    turn: Mutex<Turn<R>>,
    called: Condvar,
}

enum Turn<R> {
    Wait,
    Lead,
    Done(Result<R, Lost>),
}

impl<T, R> Group<T, R> {
    pub(crate) const fn new() -> Self {
        Self { state: Mutex::new(State { waiting: Vec::new(), leading: false }) }
    }

    /// Has `item` done, by this caller's `work` or another's, in the order of the calls, and gives its result. `work`
    /// gets 1 to [`MAX_BATCH`] items and gives a result for each; it is called until `item` is done.
    pub(crate) fn submit(&self, item: T, mut work: impl FnMut(Vec<T>) -> Vec<R>) -> Result<R, Lost> {
        let seat = Arc::new(Seat { turn: Mutex::new(Turn::Wait), called: Condvar::new() });
        let mut state = self.lock();
        state.waiting.push((Arc::clone(&seat), item));
        if !state.leading {
            state.leading = true;
            seat.call(Turn::Lead);
        }
        drop(state);
        loop {
            match seat.wait() {
                Turn::Done(result) => return result,
                Turn::Wait => {}
                Turn::Lead => {
                    let mut state = self.lock();
                    let take = state.waiting.len().min(MAX_BATCH);
                    let (seats, items): (Vec<_>, Vec<_>) = state.waiting.drain(..take).unzip();
                    drop(state);
                    let mut lead = Lead { group: self, own: &seat, seats, results: None };
                    lead.results = Some(work(items));
                }
            }
        }
    }

    /// The state is whole between any two of its changes: a panic of another thread leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, State<T, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R> Seat<R> {
    fn call(&self, turn: Turn<R>) {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = turn;
        self.called.notify_one();
    }

    /// Waits for another turn than to wait.
    fn wait(&self) -> Turn<R> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |turn: &mut Turn<R>| matches!(turn, Turn::Wait);
        let mut turn = self.called.wait_while(turn, waiting).unwrap_or_else(PoisonError::into_inner);
        core::mem::replace(&mut turn, Turn::Wait)
    }
}

/// One turn of leading. Its end, a panic included, gives everybody in the batch a result, and the lead to the next.
struct Lead<'a, T, R> {
    group: &'a Group<T, R>,
    own: &'a Arc<Seat<R>>,
    seats: Vec<Arc<Seat<R>>>,
    /// Nothing where the work panicked.
    results: Option<Vec<R>>,
}

impl<T, R> Drop for Lead<'_, T, R> {
    fn drop(&mut self) {
        let results = self.results.take();
        let panicked = results.is_none();
        let mut results = results.into_iter().flatten();
        for seat in core::mem::take(&mut self.seats) {
            seat.call(Turn::Done(results.next().ok_or(Lost)));
        }
        let mut state = self.group.lock();
        if panicked {
            // Nobody sits there any more.
            state.waiting.retain(|(seat, _)| !Arc::ptr_eq(seat, self.own));
        }
        state.leading = !state.waiting.is_empty();
        if let Some((next, _)) = state.waiting.first() {
            next.call(Turn::Lead);
        }
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
        assert!(group.lock().waiting.is_empty() && !group.lock().leading);
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

    fn seated(items: usize) -> Vec<(Arc<Seat<u32>>, u32)> {
        let seat = || Arc::new(Seat { turn: Mutex::new(Turn::Wait), called: Condvar::new() });
        (0..items).map(|_| (seat(), 0)).collect()
    }

    /// The only caller that could lead is behind a whole batch of others'.
    #[test]
    fn a_leader_leads_until_its_own_item_is_done() {
        let group = Group::new();
        group.lock().waiting = seated(MAX_BATCH);
        let mut sizes = Vec::new();
        let result = group.submit(7, |items: Vec<u32>| {
            sizes.push(items.len());
            items
        });
        assert_eq!((result, sizes), (Ok(7), vec![MAX_BATCH, 1]));
        assert!(!group.lock().leading);
    }

    /// It panics before its own item is done, and leaves nothing behind that others would wait for.
    #[test]
    fn a_leader_that_panics_behind_a_whole_batch_leaves_its_seat() {
        let group: Group<u32, u32> = Group::new();
        group.lock().waiting = seated(MAX_BATCH);
        let others: Vec<_> = group.lock().waiting.iter().map(|(seat, _)| Arc::clone(seat)).collect();
        let panicked =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| group.submit(1, |_| panic!("as asked"))));
        assert!(panicked.is_err() && group.lock().waiting.is_empty() && !group.lock().leading);
        assert!(others.iter().all(|seat| matches!(seat.wait(), Turn::Done(Err(Lost)))));
        assert_eq!(group.submit(2, |items| items), Ok(2));
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
