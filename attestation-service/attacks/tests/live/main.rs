// SPDX-License-Identifier: Apache-2.0
//! Attacks that need a fresh challenge, a race, a restart: each case's steps with the service as a process, a guest on
//! simulated hardware and the programs of the operator and of owners.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

#[path = "../../../collateral/tests/fake/mod.rs"]
#[allow(dead_code, reason = "some of its modes are used here")]
mod fake;
mod gpus;
mod guest;
mod race;
mod resume;
mod run;
mod step;
mod world;

use attacks::case::{Case, Run, committed, directories, name};

/// Cases whose number is in `numbers`; all of one test run one after the other, each with a service of its own.
fn run(numbers: &[u32]) {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for dir in directories(&committed()).unwrap() {
        let case = Case::read(&dir).unwrap();
        if case.run == Run::Live && numbers.contains(&case.attack) {
            count += 1;
            let result = run::run(&case, &dir);
            wrong.extend(result.err().map(|error| format!("{}: {error:#}\n", name(&dir).unwrap())));
        }
    }
    assert!(count > 0, "no case of {numbers:?}");
    assert!(wrong.is_empty(), "{} of {count} cases:\n{}", wrong.len(), wrong.concat());
}

#[test]
fn good_guests_and_collateral() {
    run(&[0, 14, 15, 17, 19]);
}

#[test]
fn revocation() {
    run(&[20, 52]);
}

#[test]
fn identity_and_boot() {
    run(&[12, 21, 23, 24, 28, 67, 68]);
}

#[test]
fn channel() {
    run(&[33, 35, 36, 37, 38, 65]);
}

#[test]
fn keys() {
    run(&[49, 50, 51, 53, 55]);
}

#[test]
fn every_live_case_is_in_a_test() {
    let known = [0, 14, 15, 17, 19, 20, 52, 12, 21, 23, 24, 28, 67, 68, 33, 35, 36, 37, 38, 65, 49, 50, 51, 53, 55];
    for dir in directories(&committed()).unwrap() {
        let case = Case::read(&dir).unwrap();
        assert!(case.run != Run::Live || known.contains(&case.attack), "{}", dir.display());
    }
}
