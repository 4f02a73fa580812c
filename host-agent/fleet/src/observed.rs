// SPDX-License-Identifier: Apache-2.0
//! What is declared, what is seen, and what is to be done.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use serde::{Deserialize, Serialize};
use types::{EventName, Refusal, Sha256Digest};

use crate::advice::{Pace, advice};
use crate::name::GuestName;

/// How a guest is exchanged for another generation of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The new one boots while the old one serves. Needs memory for both.
    Beside,
    /// The old one is drained and stopped, then the new one boots. Its devices are free for the new one.
    Replace,
}

/// What a provider wants of one guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Digest over everything that a launch is composed of, or why there can be none. With reasons, nothing of a guest
    /// that runs already is changed.
    pub spec: Result<Sha256Digest, Vec<Refusal>>,
    /// How it is exchanged.
    pub strategy: Strategy,
    /// How long connections of a generation that was replaced may go on.
    pub drain_ms: u64,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "kebab-case", deny_unknown_fields)]
pub enum End {
    /// The guest halted itself with a numeric code.
    Halted {
        /// In which phase.
        phase: EventName,
        /// The code. Every number of this type can be written down; a guest chooses it.
        code: u32,
    },
    /// A process ended, or a deadline passed.
    Failed {
        /// In words.
        reason: String,
    },
    /// It was refused before it started.
    Refused {
        /// Why.
        reasons: Vec<Refusal>,
    },
}

impl End {
    /// How soon to try again.
    #[must_use]
    pub fn pace(&self) -> Pace {
        match self {
            Self::Halted { code, .. } => advice(*code).0,
            Self::Failed { .. } | Self::Refused { .. } => Pace::Quick,
        }
    }
}

/// How far a running generation is, as its keeper writes it down.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Progress {
    /// No sign yet.
    #[default]
    Unknown,
    /// It boots.
    Booting,
    /// It serves at this private address.
    Serving(SocketAddrV4),
}

/// What is seen of one generation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// Its run directory exists, whole or not.
    pub directory: bool,
    /// Its run directory is composed: it can be started.
    pub composed: bool,
    /// An action about it is under way in this process.
    pub busy: bool,
    /// Its keeper lives (it holds the run directory).
    pub alive: bool,
    /// How far it is; only of a living keeper.
    pub progress: Progress,
    /// The last attempt that a keeper began, as it noted itself; 0 if none did.
    pub attempt: u32,
    /// How the last attempt ended; only without a living keeper.
    pub end: Option<End>,
    /// An action about it failed since the last step.
    pub failure: Option<Vec<Refusal>>,
    /// Open connections of clients; `None` if they are not known.
    pub connections: Option<u64>,
    /// It knows that it shall finish, or is being told, or was told in vain a moment ago.
    pub told_to_finish: bool,
}

/// What is seen of a guest's front: the process that listens for clients.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FrontSeen {
    /// It lives.
    pub alive: bool,
    /// It was started a moment ago, failed, and is not to be started again yet.
    pub held_back: bool,
    /// Where it sends new connections: generation and address.
    pub target: Option<(u64, SocketAddrV4)>,
    /// It answered when it was asked.
    pub answered: bool,
}

/// What is seen of one guest. Generations that are on the host and not in the state are here, too.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// By number.
    pub generations: BTreeMap<u64, Seen>,
    /// The front.
    pub front: FrontSeen,
}

impl Observed {
    pub(crate) fn seen(&self, number: u64) -> Seen {
        self.generations.get(&number).cloned().unwrap_or_default()
    }
}

/// One thing to do. Doing it twice does no harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Fetch the model, check the release, compose the run directory.
    Prepare {
        /// Whose.
        guest: GuestName,
        /// Which generation.
        generation: u64,
        /// What it is to be.
        spec: Sha256Digest,
    },
    /// Check the release again and start the keeper.
    Start {
        /// Whose.
        guest: GuestName,
        /// Which generation.
        generation: u64,
        /// Counts from 1.
        attempt: u32,
    },
    /// Tell the guest that it shall finish: no new clients are sent there, and those that it has are to get their answers.
    /// It cannot be told otherwise.
    Drain {
        /// Whose.
        guest: GuestName,
        /// Which generation.
        generation: u64,
    },
    /// Ask the keeper to end its guest; after a while, end it.
    Stop {
        /// Whose.
        guest: GuestName,
        /// Which generation.
        generation: u64,
    },
    /// Remove the run directory.
    Remove {
        /// Whose.
        guest: GuestName,
        /// Which generation.
        generation: u64,
    },
    /// Start the front.
    StartFront {
        /// Whose.
        guest: GuestName,
    },
    /// Tell the front where new connections go.
    Point {
        /// Whose.
        guest: GuestName,
        /// Generation and address; `None` for nowhere.
        target: Option<(u64, SocketAddrV4)>,
    },
    /// End the front.
    StopFront {
        /// Whose.
        guest: GuestName,
    },
    /// Remove what is left of a guest that is no longer declared.
    Forget {
        /// Whose.
        guest: GuestName,
    },
}
