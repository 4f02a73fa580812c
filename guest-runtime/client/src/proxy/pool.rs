// SPDX-License-Identifier: Apache-2.0
//! Attested connections that wait for their next request. Each has proven itself.

use std::sync::{Arc, Mutex, PoisonError};

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
    verifier: Arc<Verifier>,
    idle: Mutex<Vec<AttestedConnection>>,
    newest: Mutex<Value>,
}

impl Pool {
    /// A pool that begins with one connection.
    pub(crate) fn new(upstream: Upstream, verifier: Arc<Verifier>, first: AttestedConnection) -> Self {
        let newest = Mutex::new(json!(first.verdict()));
        Self { upstream, verifier, idle: Mutex::new(vec![first]), newest }
    }

    /// A connection that waits here and is open.
    pub(crate) fn idle(&self) -> Option<AttestedConnection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| idle.pop()).find(AttestedConnection::is_open)
    }

    /// A new connection.
    pub(crate) async fn fresh(&self) -> Result<AttestedConnection, ClientError> {
        let connection = connect(&self.upstream, &self.verifier).await?;
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = json!(connection.verdict());
        Ok(connection)
    }

    /// Takes a connection back whose last answer was read to its end.
    pub(crate) fn give_back(&self, connection: AttestedConnection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.is_open() && idle.len() < MAX_IDLE {
            idle.push(connection);
        }
    }

    /// The newest connection's verdict.
    pub(crate) fn newest_verdict(&self) -> Value {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

const MAX_IDLE: usize = 16;
