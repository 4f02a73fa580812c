// SPDX-License-Identifier: Apache-2.0
//! What was recorded on hardware, judged by the released program at the time that the records name.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context as _, Result};
use attacks::case::{Case, Run, committed, directories, name};
use attacks::program::Program;

/// `false` where a file is not here.
fn run(case: &Case, dir: &Path) -> Result<bool> {
    let command = if case.run == Run::Recorded { "appraise" } else { "appraise-gpu" };
    let mut arguments: Vec<OsString> = vec![command.into(), "--at".into(), case.at.clone().context("at")?.into()];
    for input in case.inputs.keys() {
        let Some(files) = case.files(dir, input)? else { return Ok(false) };
        arguments.extend(files.into_iter().flat_map(|file| [format!("--{input}").into(), file.into_os_string()]));
    }
    arguments.extend(case.arguments.iter().map(OsString::from));
    let answer = Program::new(env!("CARGO_BIN_EXE_attacks-released-service")).call(arguments)?;
    let hardware = answer.document.get("hardware").and_then(|hardware| hardware.as_str()).unwrap_or_default();
    anyhow::ensure!(["tdx", "nvidia"].contains(&hardware), "judged as {hardware}");
    case.compare(dir, "recorded", &case.expected, &answer.reasons()?)?;
    Ok(true)
}

#[test]
fn recorded_evidence_has_the_verdict_of_its_time() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for dir in directories(&committed()).unwrap() {
        let case = Case::read(&dir).unwrap();
        if matches!(case.run, Run::Recorded | Run::RecordedGpu) {
            match run(&case, &dir) {
                Ok(true) => count += 1,
                Ok(false) => println!("SKIPPED: {} (its recorded files are absent)", name(&dir).unwrap()),
                Err(error) => wrong.push(format!("{error:#}\n")),
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.concat());
    println!("{count} recorded cases");
}
