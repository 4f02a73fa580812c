// SPDX-License-Identifier: Apache-2.0
//! Where QEMU's q35 machine puts memory.
//!
//! Source: QEMU `hw/i386/pc_q35.c`, `pc_q35_init`, the same from 7.2 to 10.x without `max-ram-below-4g`.

/// Bytes of memory below 4 GiB for a machine with `memory` bytes.
pub(crate) const fn below_4g(memory: u64) -> u64 {
    if memory >= LOW_MEMORY_LIMIT { LOW_MEMORY_WHEN_SPLIT } else { memory }
}

/// A machine with at least this much memory is split.
const LOW_MEMORY_LIMIT: u64 = 0xb000_0000;
/// What a split machine has below 4 GiB.
const LOW_MEMORY_WHEN_SPLIT: u64 = 0x8000_0000;
/// Where the rest of a split machine's memory begins.
pub(crate) const ABOVE_4G: u64 = 1 << 32;
