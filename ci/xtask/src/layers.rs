// SPDX-License-Identifier: Apache-2.0
//! The layer check: a crate depends on lower layers only, or on siblings of layer 1, 2 or 4; nothing that is released
//! depends on a development-only crate; the simulator shares no code with what it checks; the verifying core has no effects;
//! nothing is compiled twice for programs and tests.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::Context as _;
use serde_json::Value;

/// Crates whose implementations must stay independent of each other: first may not reach second.
const INDEPENDENT: &[(&str, &[&str])] = &[("tdx-sim", &["calculator", "tdx-spec", "event-log"])];
/// The modules of the simulator that stand for hardware; its `*-sim` binaries call other libraries, but the hardware
/// part must not. As one crate it can be checked by source only.
const HARDWARE_SOURCES: &str = "attestation-service/tdx-sim/src";

/// The layer of what is never released: test worlds, simulators, benches.
const DEVELOPMENT: u64 = 4;

#[derive(Debug, Clone)]
struct Package {
    name: String,
    layer: u64,
    dev_only: bool,
    dependencies: Vec<String>,
}

/// Checks all crates of the workspace.
pub(crate) fn run() -> anyhow::Result<()> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked"])
        .current_dir(crate::workspace::root()?)
        .output()
        .context("cargo metadata")?;
    anyhow::ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata = serde_json::from_slice(&output.stdout)?;
    let packages = read(&metadata)?;
    let mut faults = faults(&packages);
    faults.extend(hardware_faults()?);
    faults.extend(crate::purity::faults(&metadata)?);
    faults.extend(crate::programs::compiled_twice()?);
    for fault in &faults {
        eprintln!("layers: {fault}");
    }
    anyhow::ensure!(faults.is_empty(), "layers: {} faults", faults.len());
    eprintln!("layers: {} crates depend on lower layers only", packages.len());
    Ok(())
}

fn read(metadata: &Value) -> anyhow::Result<BTreeMap<String, Package>> {
    let mut packages = BTreeMap::new();
    for package in metadata.get("packages").and_then(Value::as_array).context("packages")? {
        let name = package.get("name").and_then(Value::as_str).context("name")?.to_owned();
        let chrysalis = package.pointer("/metadata/chrysalis");
        let layer = chrysalis.and_then(|c| c.get("layer")).and_then(Value::as_u64);
        let layer = layer.with_context(|| format!("{name} has no package.metadata.chrysalis.layer"))?;
        let dev_only = chrysalis.and_then(|c| c.get("dev-only")).and_then(Value::as_bool).unwrap_or(false);
        let dependencies = package.get("dependencies").and_then(Value::as_array).context("dependencies")?;
        let dependencies = dependencies
            .iter()
            .filter(|d| d.get("kind").is_some_and(|kind| kind.as_str() != Some("dev")) && d.get("path").is_some())
            .filter_map(|d| d.get("name").and_then(Value::as_str).map(str::to_owned))
            .collect();
        packages.insert(name.clone(), Package { name, layer, dev_only, dependencies });
    }
    Ok(packages)
}

fn faults(packages: &BTreeMap<String, Package>) -> Vec<String> {
    let mut faults = Vec::new();
    for package in packages.values() {
        for dependency in package.dependencies.iter().filter_map(|name| packages.get(name)) {
            let sibling = dependency.layer == package.layer && matches!(package.layer, 1 | 2 | DEVELOPMENT);
            if dependency.layer >= package.layer && !sibling {
                faults.push(format!(
                    "{} (layer {}) depends on {} (layer {})",
                    package.name, package.layer, dependency.name, dependency.layer
                ));
            }
            if dependency.dev_only && !package.dev_only {
                faults.push(format!("{} depends on {}, which is for development only", package.name, dependency.name));
            }
        }
    }
    for (first, others) in INDEPENDENT {
        let direct = packages.get(*first).map(|p| p.dependencies.as_slice()).unwrap_or_default();
        for other in others.iter().filter(|other| direct.iter().any(|d| d == *other)) {
            faults.push(format!("{first} depends on {other}, which it is meant to check independently"));
        }
    }
    faults
}

/// The simulator's hardware sources may name no verifying crate: its binaries (`src/bin`) alone may.
fn hardware_faults() -> anyhow::Result<Vec<String>> {
    let mut faults = Vec::new();
    let mut pending = vec![crate::workspace::root()?.join(HARDWARE_SOURCES)];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "bin") {
                    pending.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                for name in
                    ["calculator::", "tdx_spec::", "event_log::", "attestation_service::", "client::", "appraise::"]
                {
                    if text.lines().any(|line| !line.trim_start().starts_with("//") && uses(line, name)) {
                        faults
                            .push(format!("{} uses {name}, which it is meant to check independently", path.display()));
                    }
                }
            }
        }
    }
    Ok(faults)
}

/// Whether `line` names the crate path `name`, not merely a longer word that ends with it.
fn uses(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        line.get(..at)
            .and_then(|before| before.chars().next_back())
            .is_none_or(|c| !(c.is_alphanumeric() || c == '_' || c == ':'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, layer: u64, dependencies: &[&str]) -> (String, Package) {
        let dependencies = dependencies.iter().map(|d| (*d).to_owned()).collect();
        (name.to_owned(), Package { name: name.to_owned(), layer, dev_only: layer == 4, dependencies })
    }

    #[test]
    fn upward_sideways_and_development_dependencies_are_found() {
        let good = BTreeMap::from([
            package("a", 0, &[]),
            package("b", 1, &["a"]),
            package("c", 1, &["b"]),
            package("d", 3, &["c"]),
        ]);
        assert!(faults(&good).is_empty());
        let upward = BTreeMap::from([package("a", 0, &["b"]), package("b", 1, &[])]);
        assert_eq!(faults(&upward).len(), 1);
        let sideways = BTreeMap::from([package("a", 3, &["b"]), package("b", 3, &[])]);
        assert_eq!(faults(&sideways).len(), 1);
        let worlds = BTreeMap::from([package("a", 4, &["b"]), package("b", 4, &[])]);
        assert!(faults(&worlds).is_empty());
        let mut development = BTreeMap::from([package("a", 3, &["s"]), package("s", 0, &[])]);
        development.get_mut("s").unwrap().dev_only = true;
        assert_eq!(faults(&development).len(), 1);
        let circular = BTreeMap::from([package("tdx-sim", 4, &["calculator"]), package("calculator", 1, &[])]);
        assert_eq!(faults(&circular).len(), 1);
    }

    #[test]
    fn only_whole_paths_count() {
        assert!(uses("use calculator::x;", "calculator::"));
        assert!(!uses("use my_calculator::x;", "calculator::"));
    }
}
