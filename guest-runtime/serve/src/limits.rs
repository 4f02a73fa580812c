// SPDX-License-Identifier: Apache-2.0
//! What one client can cost.

use std::time::Duration;

/// Limits of the server. The defaults suit a guest; tests shorten times.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once, three quarters of them for one address; further ones are closed at once.
    pub connections: usize,
    /// Connections that have still to say whose they are, beside those; further ones are not accepted before.
    pub nameless: usize,
    /// Answers that the engine holds at once, running and waiting, three quarters of them for one address. A request for
    /// more than are left is answered 429, as is every one with more choices than this.
    pub generations: usize,
    /// The same of a model for embeddings: requests.
    pub embeddings: usize,
    /// Most bytes of a request's body.
    pub body_bytes: usize,
    /// Most messages of a conversation.
    pub messages: usize,
    /// Most bytes of an answer's text.
    pub answer_bytes: usize,
    /// Time for the TLS handshake, and for the header before it where there is one.
    pub handshake: Duration,
    /// Time for a request's head, counted from the end of the request before.
    pub head: Duration,
    /// Time for a request's body.
    pub body: Duration,
    /// How long a client may take nothing of what is sent to it.
    pub stall: Duration,
    /// How long a guest that shall finish still takes connections, and how long one that was never asked anything may
    /// take to bring its request.
    pub grace: Duration,
    /// Receipts kept for `GET /v1/receipts/{id}`; the oldest go first. As many may wait for the attester.
    pub receipts: usize,
    /// How long an answer waits for its receipt. One that comes later is kept all the same.
    pub receipt: Duration,
    /// How long what the engine keeps of a tenant's prompts stays when the tenant asks nothing; a quarter more at most.
    pub tenant_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 700,
            nameless: 128,
            // As many as the engine lets wait, however few it computes at once: what has a place here is taken there.
            generations: 256,
            // The embedder takes 64.
            embeddings: 42,
            body_bytes: 1 << 20,
            messages: 256,
            answer_bytes: 16 << 20,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(75),
            body: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            grace: Duration::from_secs(10),
            receipts: 4096,
            receipt: Duration::from_secs(10),
            tenant_idle: Duration::from_secs(600),
        }
    }
}
