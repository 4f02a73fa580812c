// SPDX-License-Identifier: Apache-2.0
//! What is remembered between steps, and over a crash.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use types::{Document, Sha256Digest};

use crate::name::GuestName;
use crate::observed::End;

/// All guests. Times in it are milliseconds since boot, so that setting the clock changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetState {
    schema: String,
    /// The boot that the times belong to.
    pub boot: String,
    /// By name.
    pub guests: BTreeMap<GuestName, GuestState>,
}

/// One guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestState {
    /// Numbers up to this one were given out.
    pub last_generation: u64,
    /// Serves, or shall.
    pub active: Option<Generation>,
    /// Is to take over.
    pub candidate: Option<Generation>,
    /// Were replaced.
    pub retiring: Vec<Retiring>,
    /// What was tried last and given up; not tried again by itself.
    pub rolled_back: Option<RolledBack>,
    /// Stopped by command, until it is started by command.
    pub stopped: bool,
    /// A new generation of the same was asked for.
    pub renew: bool,
    /// Attempts after the first of each generation.
    pub restarts: u64,
    /// As it was last declared: how long connections of what is replaced may go on.
    pub drain_ms: u64,
}

/// One generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// Its number.
    pub number: u64,
    /// What it was composed of.
    pub spec: Sha256Digest,
    /// Attempts to run it.
    pub attempt: u32,
    /// A keeper was started and its end not yet noticed.
    pub running: bool,
    /// Failures in a row.
    pub failures: u32,
    /// No attempt before this time.
    pub retry_at: u64,
    /// It served at least once.
    pub served: bool,
    /// Since when it serves without a break.
    pub serving_since: Option<u64>,
    /// When it was asked to make room for a candidate.
    pub yielding_since: Option<u64>,
    /// Since when the guest that runs is told to finish. It takes no new clients until it was started anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finishing_since: Option<u64>,
    /// How the last attempt ended.
    pub last_end: Option<End>,
}

/// A generation on its way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retiring {
    /// Its number.
    pub number: u64,
    /// Its connections may go on until then.
    pub drain_until: u64,
}

/// A candidate that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolledBack {
    /// What it was composed of: the same is not tried again until it is asked for.
    pub spec: Sha256Digest,
    /// Its number.
    pub generation: u64,
    /// How it ended.
    pub end: End,
}

impl Document for FleetState {
    const SCHEMA: &'static str = "chrysalis/fleet-state/v1";
    const MAX_BYTES: usize = 1 << 20;

    fn schema(&self) -> &str {
        &self.schema
    }
}

impl FleetState {
    /// No guests yet.
    #[must_use]
    pub fn new(boot: &str) -> Self {
        Self { schema: Self::SCHEMA.to_owned(), boot: boot.to_owned(), guests: BTreeMap::new() }
    }

    /// Adapts times after a reboot: nothing runs any more, and nothing needs to be waited for.
    pub fn enter_boot(&mut self, boot: &str) {
        if self.boot == boot {
            return;
        }
        boot.clone_into(&mut self.boot);
        for guest in self.guests.values_mut() {
            for generation in guest.active.iter_mut().chain(&mut guest.candidate) {
                generation.running = false;
                generation.retry_at = 0;
                generation.serving_since = None;
                generation.failures = 0;
                generation.finishing_since = None;
                generation.yielding_since = generation.yielding_since.map(|_| 0);
            }
            for retiring in &mut guest.retiring {
                retiring.drain_until = 0;
            }
        }
    }

    /// Stops a guest until [`FleetState::restart`]. False if there is no such guest.
    pub fn stop(&mut self, guest: &GuestName) -> bool {
        let Some(guest) = self.guests.get_mut(guest) else { return false };
        guest.stopped = true;
        true
    }

    /// Starts a stopped guest, or exchanges it for a new generation of the same: one that runs as for an upgrade, one that
    /// does not at once. A declaration that was rolled back is tried again, and nothing is waited for. False if there is no
    /// such guest.
    pub fn restart(&mut self, guest: &GuestName) -> bool {
        let Some(guest) = self.guests.get_mut(guest) else { return false };
        // An exchange that is under way goes on.
        let exchanging = guest.candidate.is_some();
        guest.renew = !guest.stopped && guest.active.as_ref().is_some_and(|active| active.running || !exchanging);
        guest.stopped = false;
        guest.rolled_back = None;
        for generation in guest.active.iter_mut().chain(&mut guest.candidate) {
            generation.retry_at = 0;
            generation.failures = 0;
        }
        true
    }
}

impl GuestState {
    /// A new generation of `spec`.
    pub(crate) fn make(&mut self, spec: Sha256Digest) -> Generation {
        self.last_generation = self.last_generation.saturating_add(1);
        Generation {
            number: self.last_generation,
            spec,
            attempt: 0,
            running: false,
            failures: 0,
            retry_at: 0,
            served: false,
            serving_since: None,
            yielding_since: None,
            finishing_since: None,
            last_end: None,
        }
    }

    pub(crate) fn retire(&mut self, generation: Option<Generation>, drain_until: u64) {
        let retired = generation.map(|generation| Retiring { number: generation.number, drain_until });
        self.retiring.extend(retired);
    }

    /// Nothing of it is on the host any more, as far as the state knows.
    pub(crate) fn is_gone(&self) -> bool {
        self.active.is_none() && self.candidate.is_none() && self.retiring.is_empty()
    }

    /// Whether the state knows this generation.
    pub(crate) fn knows(&self, number: u64) -> bool {
        let both = self.active.iter().chain(&self.candidate);
        both.map(|generation| generation.number).chain(self.retiring.iter().map(|r| r.number)).any(|n| n == number)
    }
}
