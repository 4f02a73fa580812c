// SPDX-License-Identifier: Apache-2.0
//! Collateral: fetched from a PCCS or Intel's PCS, verified, kept, renewed.
//!
//! The source is not trusted. What it gives is verified under the service's trust anchors before it is kept, and
//! nothing is kept that is older, in any part, than what was kept before. A source that is down, slow or lying can
//! only keep a service from renewing: what is kept is served until its own time ends.
//!
//! ```text
//! DIR/<fmspc>.json        collateral, in the form that `--collateral` takes
//! DIR/<fmspc>.early.json  the next TCB evaluation, where Intel has published it for early access
//! DIR/<fmspc>.kept.json   the newest that was ever kept: dates, numbers, when fetched
//! DIR/lock                held while something is written
//! ```

mod fmspc;
mod http;
mod keep;
mod pcs;
mod refresh;
mod status;

pub use fmspc::{Fmspc, FmspcError, PckCa, Wanted};
pub use http::{HttpError, SourceError};
pub use keep::{KeepError, Keeper, Kept, Loaded, OfferError};
pub use pcs::{EvaluationSet, FetchError, Source};
pub use refresh::{REFRESH_EVERY, RefreshError, Refresher};
pub use status::{Early, State, Status};
