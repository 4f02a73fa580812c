// SPDX-License-Identifier: Apache-2.0
//! Model packs with changed ciphertext, given to the program `model`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::ffi::OsString;
use std::path::Path;

use anyhow::Result;
use attacks::case::{Case, Run, committed, directories, object_name};
use attacks::program::Program;

fn run(case: &Case, dir: &Path) -> Result<()> {
    let place = tempfile::tempdir()?;
    std::fs::create_dir(place.path().join("objects"))?;
    let files = |input: &str| case.files(dir, input).map(Option::unwrap);
    std::fs::copy(&files("index")?[0], place.path().join("pack.json"))?;
    for (number, file) in files("object")?.iter().enumerate() {
        std::fs::copy(file, place.path().join("objects").join(object_name(number)))?;
    }
    let mut arguments: Vec<OsString> = vec!["verify".into(), place.path().into(), "--key".into()];
    arguments.push(files("key")?.remove(0).into());
    arguments.extend(case.arguments.iter().map(OsString::from));
    let answer = Program::new(env!("CARGO_BIN_EXE_attacks-model")).call(arguments)?;
    case.compare(dir, "from files", &case.expected, &answer.reasons()?)
}

#[test]
fn changed_packs_are_refused() {
    let mut wrong = Vec::new();
    for dir in directories(&committed()).unwrap() {
        let case = Case::read(&dir).unwrap();
        if case.run == Run::Model {
            wrong.extend(run(&case, &dir).err().map(|error| format!("{error:#}\n")));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.concat());
}
