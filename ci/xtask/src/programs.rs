// SPDX-License-Identifier: Apache-2.0
//! The workspace's own programs, compiled as its tests are.
//!
//! Cargo takes the features of what it is told to build together. Named package by package, each choice would have other
//! features, and what they share would be compiled once for each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

use crate::{process, workspace};

/// All that is built, linted and tested together; the engine's C++ takes minutes and goes by itself.
pub(crate) const WORKSPACE: [&str; 3] = ["--workspace", "--exclude", "engine"];

/// Builds programs, and gives the directory where they stand. All of them, where none is named.
pub(crate) fn build(names: &[&str]) -> anyhow::Result<PathBuf> {
    compile(names, "dev", "debug")
}

/// The same, optimised: for who measures them.
pub(crate) fn release(names: &[&str]) -> anyhow::Result<PathBuf> {
    compile(names, "release", "release")
}

fn compile(names: &[&str], profile: &str, directory: &str) -> anyhow::Result<PathBuf> {
    let mut cargo = process::command("cargo");
    cargo.args(["build", "--locked", "--profile", profile]).args(WORKSPACE).current_dir(workspace::root()?);
    match names {
        [] => cargo.arg("--bins"),
        names => cargo.args(names.iter().flat_map(|name| ["--bin", name])),
    };
    process::run("build of programs", &mut cargo)?;
    Ok(workspace::target()?.join(directory))
}

/// The image builder, built.
pub(crate) fn image() -> anyhow::Result<Command> {
    let mut command = process::command(build(&["image"])?.join("image"));
    command.current_dir(workspace::root()?);
    Ok(command)
}

/// Packages that tests want with other features than programs do: each is compiled twice, with all that depends on it.
/// `ci/shared-features` names their features for both.
pub(crate) fn compiled_twice() -> anyhow::Result<Vec<String>> {
    Ok(grown(&features("normal,build")?, &features("normal,build,dev")?))
}

/// What is compiled for programs, and again with more features for tests. (With others, or fewer, it is another use of it:
/// by what runs while something is compiled.)
fn grown(programs: &Compiled, tests: &Compiled) -> Vec<String> {
    let more = |(package, sets): (&String, &BTreeSet<Features>)| {
        let known = programs.get(package)?;
        let mut new = sets.difference(known);
        let set = new.find(|set| known.iter().any(|known| known.is_subset(set)))?;
        Some(format!("{package}: tests want it with {set:?}, programs with {known:?}"))
    };
    tests.iter().filter_map(more).collect()
}

type Features = BTreeSet<String>;
/// Features of each package, as often as it is compiled with different ones.
type Compiled = BTreeMap<String, BTreeSet<Features>>;

fn features(edges: &str) -> anyhow::Result<Compiled> {
    let mut cargo = process::command("cargo");
    cargo.args(["tree", "--locked", "--prefix", "none", "--format", "{p}|{f}|", "--edges", edges]).args(WORKSPACE);
    let output = cargo.current_dir(workspace::root()?).output().context("cargo tree")?;
    anyhow::ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let mut packages = Compiled::new();
    for line in String::from_utf8(output.stdout).context("cargo tree")?.lines() {
        let mut parts = line.split('|');
        let (Some(package), Some(features)) = (parts.next(), parts.next()) else { continue };
        let features = features.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        packages.entry(package.to_owned()).or_default().insert(features);
    }
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(entries: &[(&str, &[&[&str]])]) -> Compiled {
        let set = |names: &&[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        entries.iter().map(|(package, sets)| ((*package).to_owned(), sets.iter().map(set).collect())).collect()
    }

    #[test]
    fn only_what_tests_want_more_of_is_compiled_twice() {
        let programs = compiled(&[("a", &[&["x"]]), ("b", &[&[]]), ("c", &[&["x", "y"]])]);
        let same = compiled(&[("a", &[&["x"]]), ("b", &[&[]]), ("c", &[&["x", "y"], &["x"]]), ("d", &[&["z"]])]);
        assert_eq!(grown(&programs, &same), Vec::<String>::new(), "fewer, and new ones");
        let more = compiled(&[("a", &[&["x"], &["x", "z"]]), ("b", &[&["x"]]), ("c", &[&["x", "y"]])]);
        let found = grown(&programs, &more);
        assert_eq!(found.len(), 2);
        assert!(found[0].starts_with("a: ") && found[1].starts_with("b: "), "{found:?}");
    }
}
