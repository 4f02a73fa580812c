// SPDX-License-Identifier: Apache-2.0
//! How many cells a cache may have.

use std::num::NonZeroU32;

/// What the size of a cell follows from, as the model's file says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CellShape {
    pub(crate) layers: u32,
    /// Heads that have keys and values.
    pub(crate) heads: u32,
    /// Numbers of one head's key.
    pub(crate) key: u64,
    /// Numbers of one head's value.
    pub(crate) value: u64,
}

impl CellShape {
    /// Bytes of a cell, and as many for its copy while the cache is compacted.
    fn bytes(self) -> u64 {
        let numbers = self.key.saturating_add(self.value).saturating_mul(self.heads.into());
        numbers.saturating_mul(self.layers.into()).saturating_mul(NUMBER_BYTES).saturating_mul(COPIES)
    }

    /// How many cells fit `memory` bytes, up to a context for each of `parallel` answers, and always one context.
    pub(crate) fn cells_within(self, memory: u64, context: NonZeroU32, parallel: u16) -> NonZeroU32 {
        let fits = memory.checked_div(self.bytes()).unwrap_or(0);
        let most = u64::from(context.get()).saturating_mul(parallel.into());
        u32::try_from(fits.min(most)).ok().and_then(NonZeroU32::new).map_or(context, |fits| fits.max(context))
    }
}

const NUMBER_BYTES: u64 = 2;
/// The cell, and what compacting takes out of the cache and puts back.
const COPIES: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_and_copy_together_fit_the_memory() {
        let context = |tokens| NonZeroU32::new(tokens).unwrap();
        // SmolLM2-135M: 30 layers of 3 heads of 64, 23,040 bytes a cell.
        let small = CellShape { layers: 30, heads: 3, key: 64, value: 64 };
        assert_eq!(small.cells_within(46_080 * 1000, context(512), 16).get(), 1000);
        assert_eq!(small.cells_within(u64::MAX, context(512), 16).get(), 512 * 16);
        assert_eq!(small.cells_within(0, context(512), 16).get(), 512);
        // Keys and values of other lengths.
        let uneven = CellShape { layers: 1, heads: 1, key: 192, value: 128 };
        assert_eq!(uneven.cells_within(1280 * 700, context(16), 64).get(), 700);
        let none = CellShape { layers: 0, heads: 0, key: 0, value: 0 };
        assert_eq!(none.cells_within(1 << 30, context(512), 16).get(), 512);
    }
}
