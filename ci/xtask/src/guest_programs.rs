// SPDX-License-Identifier: Apache-2.0
//! The engine as an image's profile has it, and the demonstration model: both from the cache, or made now.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::Value;

use crate::{process, workspace};

/// Where the engine's programs stand that these arguments of cargo name. Compiling it the first time takes minutes.
pub(crate) fn engine(profile: &str, targets: &[&str]) -> anyhow::Result<PathBuf> {
    let cargo = ["cargo", "--profile", profile, "--", "build", "--package", "engine"];
    path(&image(&[&cargo[..], targets].concat())?, "built")
}

/// The demonstration model's weights.
pub(crate) fn model() -> anyhow::Result<PathBuf> {
    path(&image(&["model"])?, "weights")
}

fn image(arguments: &[&str]) -> anyhow::Result<Value> {
    let mut command = process::command("cargo");
    command.args(["run", "--locked", "--quiet", "--package", "image", "--", "--json"]).args(arguments);
    process::json_with_progress("image", command.current_dir(workspace::root()?))
}

fn path(document: &Value, field: &str) -> anyhow::Result<PathBuf> {
    document.get(field).and_then(Value::as_str).map(PathBuf::from).with_context(|| format!("image: no {field}"))
}
