// SPDX-License-Identifier: Apache-2.0
//! Programs as an image's profile has them, and the demonstration model: all from the cache, or made now.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::Value;

use crate::{process, programs};

/// Where the engine's programs stand that these arguments of cargo name. Compiling it the first time takes minutes.
pub(crate) fn engine(profile: &str, targets: &[&str]) -> anyhow::Result<PathBuf> {
    let cargo = ["cargo", "--profile", profile, "--", "build", "--package", "engine"];
    path(&image(&[&cargo[..], targets].concat())?, "built")
}

/// Where `embedder` stands as the image `sim` has it: chosen with the image's other packages, it is not compiled again with
/// other features.
pub(crate) fn embedder() -> anyhow::Result<PathBuf> {
    let packages = ["init", "attester-sim", "serve", "engine", "embedder"].iter().flat_map(|name| ["--package", name]);
    let cargo = ["cargo", "--profile", "sim", "--", "build", "--bin", "embedder"];
    Ok(path(&image(&cargo.into_iter().chain(packages).collect::<Vec<_>>())?, "built")?.join("embedder"))
}

/// The demonstration model's weights.
pub(crate) fn model() -> anyhow::Result<PathBuf> {
    path(&image(&["model"])?, "weights")
}

fn image(arguments: &[&str]) -> anyhow::Result<Value> {
    process::json_with_progress("image", programs::image()?.arg("--json").args(arguments))
}

fn path(document: &Value, field: &str) -> anyhow::Result<PathBuf> {
    document.get(field).and_then(Value::as_str).map(PathBuf::from).with_context(|| format!("image: no {field}"))
}
