// SPDX-License-Identifier: Apache-2.0
//! Quotes and collateral: each case from files, and in a request for a key over TLS.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use attacks::case::{Case, Run, committed, directories};
use attacks::program::Program;
use attacks::wire::Store;

fn cases() -> Vec<(PathBuf, Case)> {
    let all = directories(&committed()).unwrap().into_iter().map(|dir| (Case::read(&dir).unwrap(), dir));
    all.filter(|(case, _)| case.run == Run::Quote).map(|(case, dir)| (dir, case)).collect()
}

/// The one file of an input; none where the case has no such input.
fn input(case: &Case, dir: &Path, name: &str) -> Option<PathBuf> {
    case.inputs.get(name)?;
    Some(case.files(dir, name).unwrap().unwrap().remove(0))
}

fn program(case: &Case, dir: &Path) -> Program {
    Program::new(env!("CARGO_BIN_EXE_attacks-service")).under(&input(case, dir, "root").unwrap())
}

fn from_files(case: &Case, dir: &Path) -> Result<()> {
    let mut arguments = vec!["appraise".into(), "--at".into(), case.at.clone().context("at")?.into()];
    for name in ["quote", "collateral", "policy"] {
        if let Some(file) = input(case, dir, name) {
            arguments.extend([format!("--{name}").into(), file.into_os_string()]);
        }
    }
    let refusals = program(case, dir).call(arguments)?.reasons()?;
    case.compare(dir, "from files", &case.expected, &refusals)
}

#[test]
fn quotes_are_judged_from_files() {
    let cases = cases();
    let wrong: Vec<_> = cases.iter().filter_map(|(dir, case)| from_files(case, dir).err()).collect();
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), list(&wrong));
}

/// One service for all cases of a collateral, over one store.
#[test]
fn quotes_are_judged_over_the_wire() {
    let cases = cases();
    let mut groups: BTreeMap<PathBuf, Vec<&(PathBuf, Case)>> = BTreeMap::new();
    for item in &cases {
        let collateral = input(&item.1, &item.0, "collateral").unwrap().canonicalize().unwrap();
        groups.entry(collateral).or_default().push(item);
    }
    let (dir, case) = &cases[0];
    let store = Store::init(&program(case, dir)).unwrap();
    let mut wrong = Vec::new();
    let mut policy_set = false;
    for (collateral, group) in groups {
        let service = store.serve(&[collateral], &[]).unwrap();
        for (dir, case) in group {
            let policy = input(case, dir, "policy");
            if policy.is_some() || policy_set {
                store.set_policy(policy.as_deref()).unwrap();
                policy_set = policy.is_some();
            }
            let quote = std::fs::read(input(case, dir, "quote").unwrap()).unwrap();
            let judged = service
                .refusals(&quote)
                .with_context(|| dir.display().to_string())
                .and_then(|refusals| case.compare(dir, "over the wire", case.over_the_wire(), &refusals));
            wrong.extend(judged.err());
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), list(&wrong));
}

fn list(errors: &[anyhow::Error]) -> String {
    errors.iter().map(|error| format!("{error:#}\n")).collect()
}
