// SPDX-License-Identifier: Apache-2.0
//! The model that tests of the engine ask.

use std::path::PathBuf;

/// Its file; without one the test says that `what` is skipped.
pub(crate) fn model(what: &str) -> Option<PathBuf> {
    let cached = || {
        let home = std::env::var_os("HOME").map(PathBuf::from)?;
        Some(home.join(".cache/chrysalis/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
    };
    let found =
        std::env::var_os("CHRYSALIS_TEST_MODEL").map(PathBuf::from).or_else(cached).filter(|path| path.is_file());
    if found.is_none() {
        println!("SKIPPED: {what} (no CHRYSALIS_TEST_MODEL)");
    }
    found
}
