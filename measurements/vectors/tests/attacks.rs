// SPDX-License-Identifier: Apache-2.0
//! Every committed case is decided as its `case.toml` says: with exactly these codes and fields.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::collections::BTreeMap;
use std::fs;

use vectors::case::{Case, committed, directories};

#[test]
fn every_case_is_decided_as_it_says() {
    let directories = directories(&committed()).unwrap();
    let wrong: Vec<_> = directories
        .iter()
        .filter_map(|dir| Case::read(dir).and_then(|case| case.check(dir)).err())
        .map(|error| format!("{error:#}"))
        .collect();
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), directories.len(), wrong.join("\n"));
}

#[test]
fn no_attack_lost_its_cases() {
    let mut count: BTreeMap<u32, usize> = BTreeMap::new();
    for dir in directories(&committed()).unwrap() {
        *count.entry(Case::read(&dir).unwrap().attack).or_default() += 1;
    }
    let least =
        [(0, 5), (21, 9), (22, 4), (23, 4), (24, 9), (25, 6), (26, 7), (27, 5), (28, 9), (62, 7), (63, 3), (64, 10)];
    for (attack, least) in least {
        assert!(count.get(&attack).is_some_and(|count| *count >= least), "attack {attack}: {count:?}");
    }
}

/// Each attack differs from the accepted case: the runner must tell the two apart by bytes alone.
#[test]
fn the_runner_notices_wrong_expectations() {
    let accepted = committed().join("00-accepted");
    let attack = committed().join("22-extra-word");
    let mut case = Case::read(&attack).unwrap();
    assert!(case.check(&attack).is_ok());
    case.expected[0].field = "rtmr_1".to_owned();
    assert!(case.check(&attack).is_err(), "another field");
    case.expected.clear();
    assert!(case.check(&attack).is_err(), "no reason");
    let mut case = Case::read(&accepted).unwrap();
    assert!(case.check(&accepted).is_ok());
    case.expected = Case::read(&attack).unwrap().expected;
    assert!(case.check(&accepted).is_err(), "a reason too many");
}

#[test]
fn a_case_without_expectation_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("21-x");
    fs::create_dir(&dir).unwrap();
    let text = fs::read_to_string(committed().join("22-extra-word/case.toml")).unwrap();
    let write = |text: &str| fs::write(dir.join("case.toml"), text).unwrap();
    write(&text);
    assert!(Case::read(&dir).is_err(), "the number is not the directory's");
    let text = text.replace("attack = 22", "attack = 21");
    write(&text);
    assert!(Case::read(&dir).is_ok());
    write(text.split("[[expected]]").next().unwrap());
    assert!(Case::read(&dir).is_err(), "no expectation");
    write(&text.replace("evidence.json", "../../evidence.json"));
    assert!(Case::read(&dir).is_err(), "a path out of the directory");
    write(&text.replace("attack = 21", "attack = 21\nskip = true"));
    assert!(Case::read(&dir).is_err(), "an unknown field");
}
