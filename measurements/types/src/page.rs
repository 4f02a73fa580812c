// SPDX-License-Identifier: Apache-2.0
//! Tables of the page of numbers, for tests that hold types against it.

use std::{fs, path::Path};

/// The rows of the table in `docs/status-codes.md` whose head begins so.
pub(crate) fn rows(head: &str) -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/status-codes.md");
    let page = fs::read_to_string(page).unwrap();
    let table = page.lines().skip_while(|line| !line.starts_with(head)).skip(2);
    table.take_while(|line| line.starts_with('|')).map(str::to_owned).collect()
}
