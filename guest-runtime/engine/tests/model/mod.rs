// SPDX-License-Identifier: Apache-2.0
//! The model that tests of the engine ask.

use std::path::PathBuf;

/// Its file; without one the test says that `what` is skipped.
pub(crate) fn model(what: &str) -> Option<PathBuf> {
    let found = std::env::var_os("CHRYSALIS_TEST_MODEL").map(PathBuf::from).filter(|path| path.is_file());
    if found.is_none() {
        println!("SKIPPED: {what} (no CHRYSALIS_TEST_MODEL)");
    }
    found
}
