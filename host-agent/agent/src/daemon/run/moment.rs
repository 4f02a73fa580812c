// SPDX-License-Identifier: Apache-2.0
//! What the pure step is given of this moment and this machine.

use super::super::config::{Config, HardwareSection};
use super::super::paths::Paths;
use crate::cli::Surroundings;
use crate::files;
use crate::gpu::passing::Hands;

/// The hands that bind GPUs, where the agent is to.
pub(super) fn hands(config: &Config, paths: &Paths, surroundings: &Surroundings) -> Option<Hands> {
    let HardwareSection { root, bind_gpus, .. } = &config.hardware;
    let hands = Hands { root: root.clone(), journal: paths.gpus(), sysfs: surroundings.sysfs };
    bind_gpus.then_some(hands)
}

pub(super) fn boot_id() -> anyhow::Result<String> {
    let bytes = files::read_capped("/proc/sys/kernel/random/boot_id".as_ref(), 64)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// Milliseconds since boot, those of sleep included.
pub(super) fn now_ms() -> u64 {
    let Ok(time) = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME) else { return 0 };
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec()), u64::try_from(time.tv_nsec()));
    seconds.unwrap_or(0).saturating_mul(1000).saturating_add(nanoseconds.unwrap_or(0) / 1_000_000)
}

/// Any number.
pub(super) fn jitter() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0)
}
