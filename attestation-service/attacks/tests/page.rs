// SPDX-License-Identifier: Apache-2.0
//! No attack lost its cases, and the page lists them all.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::collections::BTreeMap;
use std::path::Path;

use attacks::case::{Case, Run, committed, directories};

fn cases() -> Vec<Case> {
    directories(&committed()).unwrap().iter().map(|dir| Case::read(dir).unwrap()).collect()
}

#[test]
fn the_page_lists_every_case() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/attacks.md");
    let page = attacks::page::render(&committed()).unwrap();
    let written = std::fs::read_to_string(path).unwrap();
    assert!(page == written, "docs/attacks.md is old: cargo run -p attacks -- page > docs/attacks.md");
}

/// Numbers are never reused; 54 is retired.
#[test]
fn every_attack_has_a_case_that_is_refused() {
    let demanded = (1..=20).chain([23, 24]).chain(32..=53).chain([55, 56, 65, 67, 68, 70]);
    let mut count: BTreeMap<u32, usize> = BTreeMap::new();
    for case in cases() {
        assert!(case.attack == 0 || !case.expected.is_empty());
        assert_ne!(case.attack, 54);
        *count.entry(case.attack).or_default() += 1;
    }
    let missing: Vec<_> = demanded.filter(|attack| !count.contains_key(attack)).collect();
    assert!(missing.is_empty(), "attacks without a case: {missing:?}");
}

/// Each way of running has something good, so that a runner that refuses everything is noticed.
#[test]
fn every_way_of_running_has_something_accepted() {
    let mut accepted: BTreeMap<Run, usize> = BTreeMap::new();
    for case in cases() {
        *accepted.entry(case.run).or_default() += usize::from(case.expected.is_empty());
    }
    accepted.remove(&Run::Released);
    assert!(accepted.values().all(|count| *count > 0), "{accepted:?}");
}

#[test]
fn a_case_must_say_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("01-x");
    std::fs::create_dir(&dir).unwrap();
    let text = std::fs::read_to_string(committed().join("01-debug/case.toml")).unwrap();
    let read = |text: &str| {
        std::fs::write(dir.join("case.toml"), text).unwrap();
        Case::read(&dir)
    };
    assert!(read(&text).is_ok());
    assert!(read(&text.replace("attack = 1", "attack = 2")).is_err(), "the number is not the directory's");
    assert!(read(&text.replace("run = \"quote\"", "run = \"live\"")).is_err(), "a live case without steps");
    assert!(read(&text.replace("../common/root.der", "../../root.der")).is_err(), "a path out of the directory");
    assert!(read(&text.replace("../common/root.der", "vectors:tdx/root.der")).is_err(), "no digest");
    assert!(read(&text.replace("attack = 1", "attack = 1\nskip = true")).is_err(), "an unknown field");
    let without = format!("{}expected = []\n", text.split("[[expected]]").next().unwrap());
    assert!(read(&without).is_err(), "no expectation");
}
