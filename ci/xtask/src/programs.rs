// SPDX-License-Identifier: Apache-2.0
//! The workspace's own programs, compiled as its tests are.
//!
//! Cargo takes the features of what it is told to build together. Named package by package, each choice would have other
//! features, and what they share would be compiled once for each.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

use crate::{process, workspace};

/// All that is built, linted and tested together; the engine's C++ takes minutes and goes by itself.
pub(crate) const WORKSPACE: [&str; 3] = ["--workspace", "--exclude", "engine"];

/// Builds programs, and gives the directory where they stand. All of them, where none is named.
pub(crate) fn build(names: &[&str]) -> anyhow::Result<PathBuf> {
    let mut cargo = process::command("cargo");
    cargo.args(["build", "--locked"]).args(WORKSPACE).current_dir(workspace::root()?);
    match names {
        [] => cargo.arg("--bins"),
        names => cargo.args(names.iter().flat_map(|name| ["--bin", name])),
    };
    process::run("build of programs", &mut cargo)?;
    Ok(workspace::target()?.join("debug"))
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
    let (programs, tests) = (features("normal,build")?, features("normal,build,dev")?);
    let other = |(package, of_tests): (String, Vec<String>)| {
        let of_programs = programs.get(&package)?;
        (*of_programs != of_tests).then(|| format!("{package}: {of_programs:?} in programs, {of_tests:?} in tests"))
    };
    Ok(tests.into_iter().filter_map(other).collect())
}

/// Features of each package, as often as it is compiled with different ones.
fn features(edges: &str) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let mut cargo = process::command("cargo");
    cargo.args(["tree", "--locked", "--prefix", "none", "--format", "{p}|{f}|", "--edges", edges]).args(WORKSPACE);
    let output = cargo.current_dir(workspace::root()?).output().context("cargo tree")?;
    anyhow::ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let mut packages: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in String::from_utf8(output.stdout).context("cargo tree")?.lines() {
        let mut parts = line.split('|');
        let (Some(package), Some(features)) = (parts.next(), parts.next()) else { continue };
        packages.entry(package.to_owned()).or_default().push(features.to_owned());
    }
    for features in packages.values_mut() {
        features.sort_unstable();
        features.dedup();
    }
    Ok(packages)
}
