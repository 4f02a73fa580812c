// SPDX-License-Identifier: Apache-2.0
//! How many cells a cache may have, and for how long they are kept.

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

/// Tokens that are computed until a prefix is given up that nobody used meanwhile: `None` where it stays until its room is
/// needed.
///
/// For each token, in each head of each layer, llama.cpp looks at every cell in use. To look past a cell took 1.9 ns of one
/// thread, to compute a token 0.08 ns for each parameter (with AVX-512, several rows at once): so a cell that is kept while
/// `parameters / (24 · layers · heads)` tokens are computed has cost as much as it costs to compute it again. If one prefix
/// in four is ever used again, it should be kept for a quarter of that, whatever its length.
pub(crate) fn patience(parameters: u64, layers: u32, heads: u32) -> Option<u64> {
    parameters.checked_div(u64::from(layers).saturating_mul(heads.into()).saturating_mul(24 * 4))
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

    #[test]
    fn larger_models_keep_for_longer() {
        assert_eq!(patience(134_515_008, 30, 9), Some(5189), "SmolLM2-135M");
        assert_eq!(patience(8_030_261_248, 32, 32), Some(81_688), "Llama 3.1 8B");
        assert_eq!(patience(1, 0, 9), None);
    }
}
