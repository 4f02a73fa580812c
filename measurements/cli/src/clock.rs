// SPDX-License-Identifier: Apache-2.0
//! The system's clock.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

/// Unix seconds.
pub(crate) fn now() -> anyhow::Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?.as_secs())
}
