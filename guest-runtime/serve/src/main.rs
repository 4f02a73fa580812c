// SPDX-License-Identifier: Apache-2.0
//! The OpenAI-style API of the guest.

fn main() {}
