// SPDX-License-Identifier: Apache-2.0
//! Attested connections that wait for their next request. Each has proven itself.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    connection::{AttestedConnection, connect},
    error::ClientError,
    upstream::Upstream,
    verifier::Verifier,
};

/// A pool of connections to one guest.
#[derive(Debug)]
pub(crate) struct Pool {
    upstream: Upstream,
    /// Replaced when the policy is read again.
    verifier: Mutex<Arc<Verifier>>,
    /// Each since when.
    idle: Mutex<Vec<(AttestedConnection, Instant)>>,
    newest: Mutex<Value>,
}

impl Pool {
    /// A pool that begins with one connection.
    pub(crate) fn new(upstream: Upstream, verifier: Arc<Verifier>, first: AttestedConnection) -> Self {
        let newest = Mutex::new(json!(first.verdict()));
        Self { upstream, verifier: Mutex::new(verifier), idle: Mutex::new(vec![(first, Instant::now())]), newest }
    }

    /// A connection that waits here, is open and will not be closed by the guest just now: a request that crosses the
    /// closing cannot be sent again.
    pub(crate) fn idle(&self) -> Option<AttestedConnection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |(connection, since): &(AttestedConnection, Instant)| {
            connection.is_open() && may_serve(since.elapsed(), connection.age())
        };
        std::iter::from_fn(|| idle.pop()).find(fresh).map(|(connection, _)| connection)
    }

    /// A new connection. One that was judged by a verifier which was replaced meanwhile is not used.
    pub(crate) async fn fresh(&self) -> Result<AttestedConnection, ClientError> {
        loop {
            let connection = connect(&self.upstream, &self.verifier()).await?;
            if self.is_of_now(&connection) {
                *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = json!(connection.verdict());
                return Ok(connection);
            }
        }
    }

    /// Judges by another policy from now on. Connections that were accepted before serve no further request.
    pub(crate) fn judge_by(&self, verifier: Arc<Verifier>) {
        // In one step: who looks for a waiting connection finds none of before.
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        *self.verifier.lock().unwrap_or_else(PoisonError::into_inner) = verifier;
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = json!({"accepted": false, "reasons": []});
        idle.clear();
    }

    fn verifier(&self) -> Arc<Verifier> {
        Arc::clone(&self.verifier.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether it was judged by the policy that is in force.
    pub(crate) fn is_of_now(&self, connection: &AttestedConnection) -> bool {
        Arc::ptr_eq(connection.verifier(), &self.verifier())
    }

    /// Takes a connection back whose last answer was read to its end.
    pub(crate) fn give_back(&self, connection: AttestedConnection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.is_open() && idle.len() < MAX_IDLE && self.is_of_now(&connection) {
            idle.push((connection, Instant::now()));
        }
    }

    /// The newest connection's verdict.
    pub(crate) fn newest_verdict(&self) -> Value {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Whether the guest lets a connection be for now that waits and exists for so long.
fn may_serve(idle: Duration, age: Duration) -> bool {
    idle < MAX_IDLE_TIME && age < MAX_AGE
}

const MAX_IDLE: usize = 16;
/// A guest closes a connection that was idle for 75 seconds.
const MAX_IDLE_TIME: Duration = Duration::from_secs(60);
/// A guest closes the connections of a TLS key three hours after the next key was made, at the earliest; one that began with
/// a key may have begun at that time.
const MAX_AGE: Duration = Duration::from_secs(2 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_the_guest_may_close_just_now_take_no_request() {
        let second = Duration::from_secs(1);
        assert!(may_serve(MAX_IDLE_TIME - second, MAX_AGE - second));
        assert!(!may_serve(MAX_IDLE_TIME, MAX_AGE - second));
        assert!(!may_serve(Duration::ZERO, MAX_AGE));
    }
}
