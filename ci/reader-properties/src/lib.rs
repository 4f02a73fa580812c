// SPDX-License-Identifier: Apache-2.0
//! What every reader of hostile bytes promises, beside never to panic.
//!
//! One function for each family of readers. It takes any bytes, fails an assertion when a promise is broken, and
//! says whether the bytes were accepted. The fuzz targets of `ci/fuzz` call it with invented bytes, this crate's
//! tests with the committed corpus and its neighbours. Where there is a second, simpler way to the same result
//! (hash the bytes that count, add up a log by hand), the function goes that way too and compares.
//!
//! What a run does not show: that a reader accepts everything that it should. The tests with real quotes, logs and
//! firmware are for that.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a check that fails ends the program: that is how it is reported"
)]

mod answers;
mod api;
mod archive;
mod audit;
mod bundle;
mod certificate;
mod collateral;
mod document;
mod ear;
mod event_log;
mod explanation;
mod firmware;
mod frames;
mod gpu;
mod kernel;
mod pack;
mod policy;
mod quote;
mod rules;
pub mod seeds;
mod service;
mod stream;
mod tile_log;
mod verification;
mod wrapping;

pub use self::answers::answers;
pub use self::api::api;
pub use self::archive::archive;
pub use self::audit::audit;
pub use self::bundle::{bundle, statement};
pub use self::certificate::certificate;
pub use self::collateral::collateral;
pub use self::document::document;
pub use self::ear::ear;
pub use self::event_log::event_log;
pub use self::explanation::explanation;
pub use self::firmware::firmware;
pub use self::frames::frames;
pub use self::gpu::gpu;
pub use self::kernel::kernel;
pub use self::pack::pack;
pub use self::policy::policy;
pub use self::quote::quote;
pub use self::rules::rules;
pub use self::service::service;
pub use self::stream::stream;
pub use self::tile_log::tile_log;
pub use self::verification::verification;
pub use self::wrapping::wrapping;

/// A check: whether the bytes were accepted. It fails an assertion when a promise is broken.
pub type Property = fn(&[u8]) -> bool;

/// Every check by the name of its fuzz target.
pub const ALL: [(&str, Property); 25] = [
    ("quote", quote),
    ("event_log", event_log),
    ("kernel", kernel),
    ("firmware", firmware),
    ("tile_log", tile_log),
    ("document", document),
    ("statement", statement),
    ("bundle", bundle),
    ("verification", verification),
    ("collateral", collateral),
    ("service", service),
    ("policy", policy),
    ("explanation", explanation),
    ("gpu", gpu),
    ("answers", answers),
    ("audit", audit),
    ("archive", archive),
    ("ear", ear),
    ("rules", rules),
    ("wrapping", wrapping),
    ("api", api),
    ("pack", pack),
    ("certificate", certificate),
    ("frames", frames),
    ("stream", stream),
];

/// A little-endian number, where the bytes reach that far.
fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    usize::try_from(u32::from_le_bytes(*bytes)).ok()
}

/// A little-endian number, where the bytes reach that far.
fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk::<2>()?;
    Some(usize::from(u16::from_le_bytes(*bytes)))
}
