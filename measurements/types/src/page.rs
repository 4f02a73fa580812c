// SPDX-License-Identifier: Apache-2.0
//! Tables of the page of numbers, for tests that hold types against it.

/// The page, as it stood when the test was built: this crate reaches no file.
const PAGE: &str = include_str!("../../../docs/status-codes.md");

/// The rows of the table in `docs/status-codes.md` whose head begins so.
pub(crate) fn rows(head: &str) -> Vec<String> {
    let table = PAGE.lines().skip_while(|line| !line.starts_with(head)).skip(2);
    table.take_while(|line| line.starts_with('|')).map(str::to_owned).collect()
}
