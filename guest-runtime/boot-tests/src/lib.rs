// SPDX-License-Identifier: Apache-2.0
//! Tests that boot: see `tests/`. What is here is the program that looks round inside of a guest (`src/bin/probe.rs`).
