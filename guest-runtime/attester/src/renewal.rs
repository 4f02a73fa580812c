// SPDX-License-Identifier: Apache-2.0
//! When TLS key, certificate and evidence are renewed.

use std::{sync::Arc, time::Duration};

use crate::batch::Queue;

/// When TLS key, certificate and evidence are renewed. The instance key never is: it is the guest's name for one boot; GPU
/// evidence, time and events are of the boot as well.
#[derive(Debug)]
pub struct Renewal {
    pub(crate) every: Duration,
    pub(crate) queue: Arc<Queue>,
}

/// Asks for renewals out of turn.
#[derive(Debug, Clone)]
pub struct Renewer(Arc<Queue>);

impl Renewal {
    /// At this age the newest TLS key gets a successor.
    #[must_use]
    pub fn every(every: Duration) -> Self {
        Self { every, queue: Arc::default() }
    }

    /// Asks for renewals out of turn, for tests: the attester's own program has nobody who does.
    #[must_use]
    pub fn renewer(&self) -> Renewer {
        Renewer(Arc::clone(&self.queue))
    }
}

impl Default for Renewal {
    /// Once in an hour. A proof names the evidence of its connection's key, so clients fetch a new document as often; and each
    /// old key that still has connections costs a quote of its own when they ask for proofs.
    fn default() -> Self {
        Self::every(Duration::from_secs(3600))
    }
}

impl Renewer {
    /// Has the key renewed when the quote that is being made is done.
    pub fn renew(&self) {
        self.0.ask_renewal();
    }
}
