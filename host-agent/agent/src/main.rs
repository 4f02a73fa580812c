// SPDX-License-Identifier: Apache-2.0
//! Prepares a host and runs guests on it.

fn main() {}
