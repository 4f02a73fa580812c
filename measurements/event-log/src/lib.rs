// SPDX-License-Identifier: Apache-2.0
//! Parses and replays CCEL, TCG2 and RTMR3 event logs.
//!
//! A log proves nothing by itself: whoever hands it over wrote it. Only after [`replay`] gave the registers
//! of a verified quote is it known that these digests, in this order, were extended; and even then an
//! event's *data* are only a label unless they are hashed and compared with its digest.

mod label;
mod layout;
mod pairing;
mod replay;
mod runtime;
mod tcg;

pub use label::{Binding, Kind, Label, MAX_LABEL, escaped};
pub use pairing::{Agreement, Pairing, RUN_TIME, pair, pair_runtime};
pub use replay::{Difference, Indexing, ReplayError, Rtmrs, first_difference, register_of, replay};
pub use runtime::{EventOrderError, check_order};
pub use tcg::{ALG_SHA256, ALG_SHA384, Event, EventLog, LogError, MAX_LOG_LEN, event_type_name};
