// SPDX-License-Identifier: Apache-2.0
//! Development only: the attester over the simulated quote device.

fn main() {}
