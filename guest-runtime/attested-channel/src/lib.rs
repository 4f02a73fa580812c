// SPDX-License-Identifier: Apache-2.0
//! Binding of evidence to keys and connections, and the freshness tree.
//!
//! Pure functions of bytes: no sockets, clocks or randomness.

pub mod binding;
pub mod boot;
pub mod tree;

pub use binding::{ReportDataInputs, ed25519_spki_sha256, gpu_digest, gpu_nonce};
pub use boot::{BootFacts, Moment, expected_events};
pub use tree::{Leaf, PathError, Tree, verify_path};
