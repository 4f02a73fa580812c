// SPDX-License-Identifier: Apache-2.0
//! What one connection does, so that one that does nothing can be ended.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Requests under way, and answers that the peer has not taken.
#[derive(Debug, Clone)]
pub(crate) struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Requests that have no answer yet.
    requests: usize,
    /// When each answer that is not taken was made.
    answers: BTreeMap<u64, Instant>,
    next: u64,
    /// The last time that something ended, or when the connection began.
    last: Instant,
    asked: bool,
}

/// How long a connection may do nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Until its first request.
    pub(crate) silent: Duration,
    /// Between two requests.
    pub(crate) idle: Duration,
    /// Until an answer is taken.
    pub(crate) sending: Duration,
}

/// A request that has no answer yet.
#[derive(Debug)]
pub(crate) struct Asked(Activity);

/// An answer that the peer has not taken yet.
#[derive(Debug)]
pub(crate) struct Untaken(Activity, u64);

impl Activity {
    pub(crate) fn begin(now: Instant) -> Self {
        let state = State { requests: 0, answers: BTreeMap::new(), next: 0, last: now, asked: false };
        Self(Arc::new(Mutex::new(state)))
    }

    pub(crate) fn request(&self) -> Asked {
        let mut state = self.lock();
        state.requests = state.requests.saturating_add(1);
        state.asked = true;
        Asked(self.clone())
    }

    pub(crate) fn answer(&self, now: Instant) -> Untaken {
        let mut state = self.lock();
        let number = state.next;
        state.next = number.wrapping_add(1);
        state.answers.insert(number, now);
        Untaken(self.clone(), number)
    }

    /// It did nothing for too long.
    pub(crate) fn is_over(&self, patience: &Patience, now: Instant) -> bool {
        let state = self.lock();
        let since = |then: Instant| now.saturating_duration_since(then);
        if let Some((_, oldest)) = state.answers.first_key_value() {
            return since(*oldest) >= patience.sending;
        }
        let limit = if state.asked { patience.idle } else { patience.silent };
        state.requests == 0 && since(state.last) >= limit
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.requests = state.requests.saturating_sub(1);
        state.last = Instant::now();
    }
}

impl Drop for Untaken {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.answers.remove(&self.1);
        state.last = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience =
        Patience { silent: Duration::from_secs(5), idle: Duration::from_secs(30), sending: Duration::from_secs(60) };

    #[test]
    fn only_idleness_ends_a_connection() {
        let begun = Instant::now();
        let activity = Activity::begin(begun);
        let over = |seconds: u64| activity.is_over(&PATIENCE, begun + Duration::from_secs(seconds));
        assert!(!over(4) && over(5), "it never asked");
        let asked = activity.request();
        assert!(!over(1000), "how long a request takes is limited elsewhere");
        let later = begun + Duration::from_secs(10);
        let (first, second) = (activity.answer(begun), activity.answer(later));
        drop(asked);
        assert!(!over(59) && over(60), "the first is not taken");
        drop(first);
        assert!(!over(69) && over(70), "the second is not taken");
        drop(second);
        // Since this moment, which is not before the beginning.
        assert!(!over(29) && activity.is_over(&PATIENCE, Instant::now() + PATIENCE.idle), "idle");
    }
}
