// SPDX-License-Identifier: Apache-2.0
//! Users of the guest's processes. There is no password file: a user is a number, its group the same number.

/// The attester.
pub(crate) const ATTESTER: u32 = 101;
/// The API.
pub(crate) const SERVE: u32 = 102;
/// The inference engine.
pub(crate) const ENGINE: u32 = 103;
/// What uses GPUs: a user, and the group of their device files.
pub(crate) const GPU: u32 = 104;
/// NVIDIA's persistence daemon.
pub(crate) const PERSISTENCE: u32 = 105;
/// NVIDIA's fabric manager.
pub(crate) const FABRIC: u32 = 106;
