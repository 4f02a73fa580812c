// SPDX-License-Identifier: Apache-2.0
//! The attester over real sockets with a fake quote device whose "quote" is its REPORTDATA.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod boot;
mod guest;
mod renewal;
mod serving;
