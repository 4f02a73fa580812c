// SPDX-License-Identifier: Apache-2.0
//! The service as a program, over the wire and at its command line: one program, since linking it takes longer than most of its
//! tests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod appraise_gpu;
mod bad_input;
mod command_line;
mod ear;
mod gpus;
mod http;
mod http2;
mod key_release;
mod limits;
mod metrics;
mod owners;
mod reload;
mod revocation;
mod schemathesis;
mod serving;
mod stopping;
mod store_commands;
mod tenants;
mod units;
mod world;
