// SPDX-License-Identifier: Apache-2.0
//! Attacks that need a machine: the image's own kernel and init boot under emulation, the test is the hostile host.
//!
//! The files come from `CHRYSALIS_KERNEL` (with the image's other files beside it) and `CHRYSALIS_OVMF`; without them the
//! tests say `SKIPPED`. The image for GPUs comes from the directory `CHRYSALIS_GPU_IMAGE`. A trust domain is not involved: what a kernel refuses, it refuses on every platform.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod aml;
mod configuration;
mod hardening;
mod host;
mod machine;
mod measured;
mod root;
mod tables;
mod view;

/// The value, or `SKIPPED` with the reason and the end of the test.
macro_rules! need {
    ($found:expr, $what:literal) => {
        match $found {
            Ok(found) => found,
            Err(reason) => {
                println!("SKIPPED: {} ({reason})", $what);
                return;
            }
        }
    };
}

pub(crate) use need;
