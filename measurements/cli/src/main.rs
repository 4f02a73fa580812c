// SPDX-License-Identifier: Apache-2.0
//! Command line to compute, replay, explain and publish measurements.

fn main() {}
