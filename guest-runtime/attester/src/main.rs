// SPDX-License-Identifier: Apache-2.0
//! Holder of the instance key and the quote device.

fn main() {}
