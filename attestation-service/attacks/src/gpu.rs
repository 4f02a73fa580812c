// SPDX-License-Identifier: Apache-2.0
//! What a GPU's nonce is made of, fixed for recorded reports and for the guests that show them.

use types::Hex32;

/// The guest's instance key.
pub const INSTANCE: Hex32 = Hex32::new([5; 32]);
/// Its randomness.
pub const RANDOM: Hex32 = Hex32::new([6; 32]);
/// The boot's first collection.
pub const EPOCH: u64 = 1;
