// SPDX-License-Identifier: Apache-2.0
//! The guests of one host: what was declared, what is seen, and what follows from both.
//!
//! [`FleetState::step`] is a pure function of (state, declared, observed, now): it changes the state and says which
//! [`Action`]s bring the host nearer to what was declared. It is called again and again, each time with fresh
//! observations, and repeats an action until its result is seen. So it does not matter which action failed, or where a
//! crash cut it off: the state is written down *before* its actions run, and everything else is observed.
//!
//! A guest runs in *generations*, numbered and never reused. Each has a run directory and a keeper process. One is
//! `active`; during an upgrade a `candidate` comes up beside it or in its place, and takes over when it serves; what was
//! replaced is `retiring`: it keeps the connections it has until they end or a deadline passes.
//!
//! Nothing here establishes that a guest is the one that was meant: clients and the attestation service do that.

mod advice;
mod backoff;
mod drive;
mod name;
mod observed;
mod state;
mod step;

pub use advice::{Pace, advice, blames_model_disk};
pub use backoff::Backoff;
pub use name::{GuestName, GuestNameError};
pub use observed::{Action, Declared, End, FrontSeen, Observed, Progress, Seen, Strategy};
pub use state::{FleetState, Generation, GuestState, Retiring, RolledBack};
pub use step::{Now, StepInput};
