// SPDX-License-Identifier: Apache-2.0
//! The released programs, given the simulator's root in every way that a program takes things: nothing of the simulator is
//! believed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use attacks::case::{Case, Run, committed, directories};
use attacks::program::Program;
use attacks::wire::Store;

fn released() -> Program {
    Program::new(env!("CARGO_BIN_EXE_attacks-released-service"))
}

fn file(case: &Case, dir: &Path, input: &str) -> PathBuf {
    case.files(dir, input).unwrap().unwrap().remove(0).canonicalize().unwrap()
}

fn appraise(case: &Case, dir: &Path) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["appraise".into(), "--at".into(), case.at.clone().unwrap().into()];
    for input in ["quote", "collateral", "policy"] {
        if case.inputs.contains_key(input) {
            arguments.extend([format!("--{input}").into(), file(case, dir, input).into_os_string()]);
        }
    }
    arguments
}

fn run(case: &Case, dir: &Path) -> Result<()> {
    let root = || file(case, dir, "root");
    match case.scenario.as_deref().context("scenario")? {
        // Not even known: wrong usage, in front of the command and behind it.
        "flags" => {
            for flag in &case.arguments {
                for front in [true, false] {
                    let mut arguments = appraise(case, dir);
                    let given = [flag.into(), root().into_os_string()];
                    let at = if front { 0 } else { arguments.len() };
                    arguments.splice(at..at, given);
                    let answer = released().call(arguments)?;
                    ensure!(answer.code == 64, "{flag}: {answer:?}");
                }
            }
            case.compare(dir, "without them", &case.expected, &released().call(appraise(case, dir))?.reasons()?)
        }
        "environment" => {
            let mut program = released();
            for name in &case.arguments {
                program = program.with_variable(name, &root());
            }
            case.compare(dir, "from files", &case.expected, &program.call(appraise(case, dir))?.reasons()?)
        }
        // Beside the program's working directory, under its home, and in its configuration.
        "files" => {
            let place = tempfile::tempdir()?;
            for name in &case.arguments {
                let path = place.path().join(name);
                std::fs::create_dir_all(path.parent().context("parent")?)?;
                std::fs::copy(root(), path)?;
            }
            let program = ["HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"]
                .into_iter()
                .fold(released(), |program, name| program.with_variable(name, place.path()))
                .in_directory(place.path());
            case.compare(dir, "from files", &case.expected, &program.call(appraise(case, dir))?.reasons()?)
        }
        // A whole service, with the simulator's collateral, and its root in its store.
        "service" => {
            let store = Store::init(&released())?;
            for name in &case.arguments {
                std::fs::copy(root(), store.path().join(name))?;
            }
            let service = store.serve(&[file(case, dir, "collateral")], &[])?;
            let refusals = service.refusals(&std::fs::read(file(case, dir, "quote"))?)?;
            case.compare(dir, "over the wire", &case.expected, &refusals)
        }
        "policy" => {
            let answer = released().call(appraise(case, dir))?;
            case.compare(dir, "from files", &case.expected, &answer.reasons()?)?;
            let store = Store::init(&released())?;
            let mut arguments: Vec<OsString> =
                vec!["policy".into(), "set".into(), "--store".into(), store.path().into()];
            arguments.extend(["--file".into(), file(case, dir, "policy").into()]);
            case.compare(dir, "policy set", case.over_the_wire(), &released().call(arguments)?.reasons()?)
        }
        other => anyhow::bail!("no scenario is called {other}"),
    }
}

#[test]
fn released_programs_believe_no_simulator() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for dir in directories(&committed()).unwrap() {
        let case = Case::read(&dir).unwrap();
        if case.run == Run::Released {
            count += 1;
            wrong.extend(run(&case, &dir).err().map(|error| format!("{}: {error:#}\n", dir.display())));
        }
    }
    assert!(count > 0 && wrong.is_empty(), "{} of {count} wrong:\n{}", wrong.len(), wrong.concat());
}
