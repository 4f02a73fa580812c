// SPDX-License-Identifier: Apache-2.0
//! The subcommands about inputs, locks and audits.

use std::path::Path;

use image::{
    Audit, BuildOptions, CARGO_LOCK, Console, Explain, Inputs, NamedLock, Published, Sources, Workspace, kind_name,
};
use serde_json::{Value, json};

use crate::{Arguments, InputsAction, boxed, sources};

/// `image inputs [export|import]`.
pub(crate) fn inputs(
    workspace: &Workspace,
    action: Option<&InputsAction>,
    arguments: &Arguments,
) -> Result<Value, Box<dyn Explain>> {
    let inputs = Inputs::read(workspace).map_err(boxed)?;
    match action {
        None => Ok(list(&inputs, arguments.json)),
        Some(InputsAction::Export { out, names }) => {
            let inputs = inputs.select(names).map_err(boxed)?;
            export(workspace, &inputs, out, &sources(arguments)?, arguments.json)
        }
        Some(InputsAction::Import { archive, names }) => {
            let inputs = inputs.select(names).map_err(boxed)?;
            let sources = sources(arguments)?;
            let count = image::import_inputs(&inputs, archive, &sources, &Console::new()).map_err(boxed)?;
            if !arguments.json {
                println!("{count} inputs in {}", sources.cache.root().display());
            }
            Ok(json!({"imported": count}))
        }
    }
}

fn export(
    workspace: &Workspace,
    inputs: &Inputs,
    out: &Path,
    sources: &Sources,
    quiet: bool,
) -> Result<Value, Box<dyn Explain>> {
    let (size, sha256) = image::export_inputs(workspace, inputs, out, sources, &Console::new()).map_err(boxed)?;
    if !quiet {
        println!("{} ({size} bytes, sha256 {sha256})", out.display());
    }
    Ok(json!({"archive": out, "size": size, "sha256": sha256}))
}

fn list(inputs: &Inputs, quiet: bool) -> Value {
    let mut listed = Vec::new();
    for NamedLock { name, lock, lock_sha256 } in &inputs.files {
        if !quiet {
            println!("{name}: {} {} ({})", lock.package, lock.version, lock.licence);
            println!("  {}\n  {} {} bytes, sha256 {}", lock.reason, lock.path, lock.size, lock.sha256);
        }
        listed.push(json!({
            "name": name, "kind": kind_name(lock.kind), "package": lock.package, "version": lock.version,
            "path": lock.path, "size": lock.size, "sha256": lock.sha256, "licence": lock.licence,
            "reason": lock.reason, "lock_sha256": lock_sha256,
        }));
    }
    for set in &inputs.sets {
        let size: u64 = set.set.packages.iter().map(|p| p.size).sum();
        if !quiet {
            println!("{}: {} packages of {}, {size} bytes", set.name, set.set.packages.len(), set.set.suite);
            println!("  {}\n  sha256 over all {}", set.set.reason, set.content());
            set.set.packages.iter().for_each(|p| println!("  {} {} sha256 {}", p.package, p.version, p.sha256));
        }
        listed.push(json!({
            "name": set.name, "kind": "debian-set", "suite": set.set.suite, "size": size, "sha256": set.content(),
            "reason": set.set.reason, "lock_sha256": set.lock_sha256, "packages": set.set.packages,
        }));
    }
    let rust = &inputs.rust.lock;
    if !quiet {
        println!("rust: rust {} ({})\n  {}", rust.channel, rust.licence, rust.reason);
        println!(
            "  {}: {} files, {} bytes, sha256 over all {}",
            rust.components.join(", "),
            rust.entries,
            rust.size,
            rust.sha256
        );
        println!("{CARGO_LOCK}: {} Rust packages", inputs.crates.len());
        inputs.crates.iter().for_each(|c| println!("  {} {} sha256 {}", c.name, c.version, c.sha256));
    }
    let mut tool = "";
    for lock in &inputs.tools {
        if !quiet {
            if tool != image::tool_of(lock) {
                tool = image::tool_of(lock);
                println!("{tool} (host tool)\n  {}", lock.lock.reason);
            }
            println!("  {} {} sha256 {}", lock.lock.package, lock.lock.version, lock.lock.sha256);
        }
    }
    let tools: Vec<Value> = inputs
        .tools
        .iter()
        .map(|NamedLock { name, lock, lock_sha256: _ }| {
            json!({
                "name": name, "package": lock.package, "version": lock.version, "path": lock.path, "size": lock.size,
                "sha256": lock.sha256,
            })
        })
        .collect();
    let crates: Vec<Value> =
        inputs.crates.iter().map(|c| json!({"package": c.name, "version": c.version, "sha256": c.sha256})).collect();
    json!({"inputs": listed, "rust": rust, "crates": crates, "host_tools": tools})
}

/// `image lock update`.
pub(crate) fn update(
    workspace: &Workspace,
    names: &[String],
    arguments: &Arguments,
) -> Result<Value, Box<dyn Explain>> {
    let updated = image::update_locks(workspace, names, &sources(arguments)?, &Console::new()).map_err(boxed)?;
    if !arguments.json {
        let version = |v: &Option<String>| v.clone().unwrap_or_else(|| "none".to_owned());
        for change in &updated.changes {
            println!("{}: {} {} → {}", change.lock, change.package, version(&change.old), version(&change.new));
        }
        for name in &updated.by_hand {
            println!("{name}: names no suite; bump it by hand");
        }
        if updated.changes.is_empty() {
            println!("nothing moved");
        } else {
            println!("{REBUILD}");
        }
    }
    Ok(json!({"changes": updated.changes, "by_hand": updated.by_hand, "rebuild": REBUILD}))
}

/// `image audit`.
pub(crate) fn audit(
    workspace: &Workspace,
    against: &Path,
    built: Option<&Path>,
    arguments: &Arguments,
) -> Result<Value, Box<dyn Explain>> {
    let published = Published::read(against).map_err(boxed)?;
    let scratch;
    let built = match built {
        Some(directory) => directory,
        None => {
            let sources = sources(arguments)?;
            let out = sources.cache.work(&format!("audit-{}", std::process::id())).map_err(boxed)?;
            let (workspace, profile) = (workspace.clone(), published.profile.clone());
            let options = BuildOptions { workspace, profile, out: out.clone(), sources, jobs: None };
            image::build(&options, &Console::new()).map_err(boxed)?;
            scratch = Scratch(out);
            &scratch.0
        }
    };
    let audit = image::audit(&published, built).map_err(boxed)?;
    if !audit.identical {
        return Err(boxed(Differs(audit)));
    }
    if !arguments.json {
        for file in &audit.files {
            println!("identical: {}", file.name);
        }
        println!("the signature of what was published was not checked: use `measure bundle verify`");
    }
    Ok(json!(audit))
}

/// A directory that goes with the program.
struct Scratch(std::path::PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // It is in the cache's scratch, which may be deleted at any time.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Differs(Audit);

impl Explain for Differs {
    fn refusal(&self) -> types::Refusal {
        let none =
            || types::Refusal::new("image_differs", "files", "nothing was compared", "publish the image's files");
        self.reasons().into_iter().next().unwrap_or_else(none)
    }

    fn reasons(&self) -> Vec<types::Refusal> {
        self.0.reasons()
    }

    fn document(&self) -> serde_json::Map<String, Value> {
        match json!(self.0) {
            Value::Object(document) => document,
            _ => serde_json::Map::new(),
        }
    }
}

const REBUILD: &str = "Rebuild every profile (`image build`), compare its registers (`measure compute`) and say in the \
change log which of them move: a bumped firmware moves MRTD and RTMR0, anything else RTMR1 or RTMR2.";
