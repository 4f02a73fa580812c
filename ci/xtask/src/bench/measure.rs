// SPDX-License-Identifier: Apache-2.0
//! The figures of `measurements/bench`, a program of its own: it must be built for release, in one process.

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;

use super::{Figure, Outcome};
use crate::{process, workspace};

/// What the program prints.
#[derive(Deserialize)]
struct Document {
    figures: Vec<Figure>,
    image: Value,
    rounds: Value,
}

pub(super) fn run() -> anyhow::Result<Outcome> {
    let mut build = process::command("cargo");
    build.args(["build", "--locked", "--release", "--package", "measurements-bench"]).current_dir(workspace::root()?);
    process::run("build of the bench", &mut build)?;
    let mut bench = process::command(workspace::target()?.join("release/measurements-bench"));
    let image = workspace::target()?.join("image-sim");
    if image.join("image.json").is_file() {
        bench.arg("--image").arg(image);
    } else {
        eprintln!("no built image in {}: made-up files of an image's size are measured", image.display());
    }
    let document = process::json("measurements-bench", &mut bench)?;
    let Document { figures, image, rounds } = serde_json::from_value(document).context("measurements-bench")?;
    let details = serde_json::Map::from_iter([("image".to_owned(), image), ("rounds".to_owned(), rounds)]);
    Ok(Outcome { figures, details })
}
