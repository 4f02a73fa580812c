// SPDX-License-Identifier: Apache-2.0
//! The verifying core reaches nothing by itself: the sources of every crate that the page verifier is made of name no
//! file, network, thread, process, clock, environment or source of randomness. The compiled module is checked, too, but for
//! WebAssembly the standard library has all of these, as functions that fail.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::Value;

/// The crate whose parts are the core.
const CORE: &str = "page-verifier";

/// Names that stand for an effect wherever they stand.
const NAMES: [&str; 16] = [
    "SystemTime",
    "Instant",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "ToSocketAddrs",
    "OsRng",
    "getrandom",
    "thread_rng",
    "println",
    "eprintln",
    "stdin",
    "stdout",
    "stderr",
    "thread_local",
];
/// Modules of the standard library.
const MODULES: [&str; 5] = ["fs", "thread", "process", "env", "os"];

/// Every effect that the core's sources name, by file.
pub(crate) fn faults(metadata: &Value) -> anyhow::Result<Vec<String>> {
    let mut faults = Vec::new();
    let core = core(metadata)?;
    anyhow::ensure!(core.len() > MIN_CRATES, "{CORE} has only {} crates: the search is blind", core.len());
    for directory in core {
        for path in sources(&directory.join("src"))? {
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            if let Some(name) = effect(&text) {
                faults.push(format!("{} names {name}: the verifying core reaches nothing by itself", path.display()));
            }
        }
    }
    Ok(faults)
}

/// Directories of the core's crates.
fn core(metadata: &Value) -> anyhow::Result<BTreeSet<PathBuf>> {
    let packages = metadata.get("packages").and_then(Value::as_array).context("packages")?;
    let mut pending = vec![CORE];
    let mut found = BTreeSet::new();
    while let Some(name) = pending.pop() {
        let named = |package: &&Value| package.get("name").and_then(Value::as_str) == Some(name);
        let package = packages.iter().find(named).with_context(|| format!("no crate {name}"))?;
        let manifest = package.get("manifest_path").and_then(Value::as_str).context("manifest_path")?;
        if !found.insert(Path::new(manifest).parent().context("manifest_path")?.to_owned()) {
            continue;
        }
        let dependencies = package.get("dependencies").and_then(Value::as_array).context("dependencies")?;
        pending.extend(dependencies.iter().filter(|d| d.get("path").is_some_and(|path| !path.is_null())).filter_map(
            |dependency| match dependency.get("kind").and_then(Value::as_str) {
                None => dependency.get("name").and_then(Value::as_str),
                Some(_) => None,
            },
        ));
    }
    Ok(found)
}

/// All sources but those of tests.
fn sources(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        let is_test = path.file_stem().is_some_and(|name| name == "tests");
        if path.is_dir() && !is_test {
            found.extend(sources(&path)?);
        } else if !is_test && path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

/// The first effect that code names, apart from comments and from tests, which stand last in a file.
fn effect(text: &str) -> Option<&'static str> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines
        .flat_map(|line| {
            let of_module = MODULES.iter().filter(move |name| word(line, name, "::"));
            NAMES.iter().filter(move |name| word(line, name, "")).chain(of_module)
        })
        .next()
        .copied()
}

/// Whether `line` has `name` as a word by itself, followed by `then`.
fn word(line: &str, name: &str, then: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(name).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        let after = line.get(at + name.len()..).unwrap_or_default();
        !before.is_some_and(part) && !after.starts_with(part) && after.starts_with(then)
    })
}

/// Fewer would mean that the search misses some.
const MIN_CRATES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effects_are_found_in_code_and_only_there() {
        for line in [
            "let x = std::fs::read(path);",
            "use std::{fs::File, io::Read};",
            "    thread::spawn(|| ());",
            "let now = SystemTime::now();",
            "let start = std::time::Instant::now();",
            "println!(\"{x}\");",
            "getrandom::fill(&mut bytes)",
            "std::env::var(\"X\")",
        ] {
            assert!(effect(&format!("fn f() {{\n{line}\n}}\n")).is_some(), "{line}");
            assert_eq!(effect(&format!("/// {line}\n")), None, "{line}");
            assert_eq!(effect(&format!("fn f() {{}}\n#[cfg(test)]\nmod tests {{\n{line}\n}}\n")), None, "{line}");
        }
        for line in ["use std::net::Ipv4Addr;", "let offs::x = 1;", "Instantly::now()", "env!(\"X\")", "let fs = 1;"] {
            assert_eq!(effect(line), None, "{line}");
        }
    }
}
