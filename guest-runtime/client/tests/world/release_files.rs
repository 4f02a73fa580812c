// SPDX-License-Identifier: Apache-2.0
//! A release that is signed, logged as the only entry of a log, and witnessed.

use release::{Hardware, Statement, TrustPolicy};
use types::{Registers, Sha384Digest};

use super::shape;

/// What a guest that was launched as published measures.
pub(crate) fn registers(mr_config_id: Sha384Digest) -> Registers {
    sample_release::registers(&statement(1_700_000_000).predicate, &shape(), mr_config_id)
}

/// Bundle and trust policy.
pub(crate) fn published(now: u64) -> (Vec<u8>, TrustPolicy) {
    sample_release::publish(&statement(now), now)
}

fn statement(now: u64) -> Statement {
    sample_release::statement(Hardware::Simulated, &[shape()], now)
}
