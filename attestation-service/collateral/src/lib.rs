// SPDX-License-Identifier: Apache-2.0
//! Collateral: fetched from a PCCS or Intel's PCS, verified, kept, renewed.
//!
//! The source is not trusted. What it gives is verified under the service's trust anchors before it is kept, and
//! nothing is kept that is older, in any part, than what was kept before. A source that is down, slow or lying can
//! keep a service from renewing (what is kept is served until its own time ends), and it can choose among the TCB
//! evaluations that Intel still signs at a time: an older number than the newest in force, as long as none newer was
//! kept, or the one for early access. All are genuine; `min_tcb_evaluation_data_number` of a policy says which is the
//! oldest that counts.
//!
//! ```text
//! DIR/<fmspc>.json        collateral, in the form that `--collateral` takes
//! DIR/<fmspc>.early.json  the next TCB evaluation, where Intel has published it for early access
//! DIR/<fmspc>.kept.json   the newest that was ever kept: dates, numbers, authority, when fetched
//! DIR/lock                held while something is written
//! ```

mod fmspc;
mod http;
mod keep;
mod offer;
mod outlook;
mod pcs;
mod refresh;
mod status;

pub use fmspc::{Fmspc, FmspcError, PckCa, Wanted};
pub use http::{HttpError, SourceError};
pub use keep::{KeepError, Keeper, Kept, Loaded};
pub use offer::OfferError;
pub use outlook::{Outlook, Standing};
pub use pcs::{Answers, EvaluationSet, FetchError, Signed, Source};
pub use refresh::{REFRESH_EVERY, RefreshError, Refresher};
pub use status::{Early, State, Status};
