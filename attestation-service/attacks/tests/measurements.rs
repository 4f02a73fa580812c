// SPDX-License-Identifier: Apache-2.0
//! The cases of `measurements/vectors` about whole evidence (attacks 21 to 28), judged by the program from files, beside the
//! library that they are judged by there.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Result, ensure};
use attacks::case::{Reason, name, show};
use attacks::program::Program;
use vectors::case::{Case, Verifier, committed, directories};

fn run(case: &Case, dir: &Path) -> Result<()> {
    let file = |input: &str| dir.join(&case.inputs[input]).into_os_string();
    let program = Program::new(env!("CARGO_BIN_EXE_attacks-service")).under(Path::new(&file("root")));
    let mut arguments: Vec<OsString> = vec!["appraise".into(), "--at".into(), case.at.clone().into()];
    for (flag, input) in
        [("evidence", "evidence"), ("collateral", "collateral"), ("release", "bundle"), ("trust", "trust")]
    {
        arguments.extend([format!("--{flag}").into(), file(input)]);
    }
    let found: Vec<_> = program.call(arguments)?.reasons()?.iter().map(Reason::from).collect();
    ensure!(found == case.expected, "{}: expected {}; found {}", name(dir)?, show(&case.expected), show(&found));
    Ok(())
}

#[test]
fn whole_evidence_is_judged_by_the_program() {
    let (mut wrong, mut count) = (String::new(), 0);
    for dir in directories(&committed()).unwrap() {
        let case = Case::read(&dir).unwrap();
        if case.verifier == Verifier::Appraise {
            count += 1;
            if let Err(error) = run(&case, &dir) {
                wrong += &format!("{error:#}\n");
            }
        }
    }
    assert!(count > 50 && wrong.is_empty(), "of {count} cases:\n{wrong}");
}
