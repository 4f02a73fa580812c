// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask test`: everything that must hold, from a fresh clone.

use std::time::Instant;

use anyhow::Context as _;
use clap::Args;

use crate::guest_programs::Compiled;
use crate::openai_clients::{Clients, Languages};
use crate::{guest_programs, labels, layers, process, programs, schemathesis, setup, wasm, workspace};

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Leave out what boots guests.
    #[arg(long)]
    quick: bool,
    /// Leave out the image for GPUs: its kernel, its modules and 96 MB of packages. Its boot tests then say that they are
    /// skipped.
    #[arg(long)]
    no_gpu: bool,
}

/// Runs all checks; the counts of the tests come last.
pub(crate) fn run(args: &TestArgs) -> anyhow::Result<()> {
    setup::check_platform()?;
    setup::run()?;
    step("formatting", || {
        process::run("formatting", cargo(&["fmt", "--all", "--check"])?.stdout(std::process::Stdio::null()))
    })?;
    step("layers", layers::run)?;
    step("lints", || {
        let arguments =
            [&["clippy", "--locked", "--all-targets"][..], &programs::WORKSPACE, &["--", "-D", "warnings"]].concat();
        process::run("lints", &mut cargo(&arguments)?)
    })?;
    step("labels", labels::run)?;
    if !args.quick {
        step("image", || {
            process::run(
                "image",
                programs::image()?.args(["build", "--profile", "sim", "--out"]).arg(image_directory("sim")?),
            )
        })?;
        if !args.no_gpu {
            step("image for GPUs", || {
                let directory = image_directory("gpu-sim")?;
                process::run(
                    "image",
                    programs::image()?.args(["build", "--profile", "gpu-sim", "--out"]).arg(directory),
                )
            })?;
        }
        step("host tools", host_tools)?;
        step("engine lints", || {
            process::run("engine lints", &mut engine(&["clippy"], &["--all-targets", "--", "-D", "warnings"])?)
        })?;
        step("engine tests", || process::run("engine tests", &mut engine(&["nextest", "run"], &[&threads()])?))?;
    }
    let schemathesis = schemathesis::install()?;
    let mut modules = None;
    if setup::has_wasm_target()? {
        step("WebAssembly", || {
            modules = Some(wasm::build(false)?);
            Ok(())
        })?;
    } else {
        eprintln!("SKIPPED: WebAssembly ({} cannot be installed here)", wasm::TARGET);
    }
    let clients = Clients::install(Languages::All)?;
    step("tests", || {
        let mut command = cargo(&["nextest", "run", "--locked", "--no-fail-fast", &threads()])?;
        command.args(programs::WORKSPACE);
        command.env(schemathesis::VARIABLE, &schemathesis);
        command.envs(modules.map(|directory| (wasm::VARIABLE, directory)));
        clients.name_in(&mut command);
        if args.quick {
            command.args(["-E", "not test(/^end_to_end/)"]);
        } else {
            let image = image_directory("sim")?;
            command.env("CHRYSALIS_OVMF", image.join("firmware.fd")).env("CHRYSALIS_KERNEL", image.join("vmlinuz"));
            command.env("CHRYSALIS_TEST_EMBEDDING_MODEL", embedding_model()?);
            let engine = guest_programs::engine(Compiled::Sim, &["--bin", "engine"])?;
            command
                .env("CHRYSALIS_ENGINE", engine.join("engine"))
                .env("CHRYSALIS_EMBEDDER", guest_programs::embedder()?)
                .env("CHRYSALIS_TEST_MODEL", guest_programs::model()?);
        }
        if !(args.quick || args.no_gpu) {
            command.env("CHRYSALIS_GPU_IMAGE", image_directory("gpu-sim")?);
        }
        process::run("tests", &mut command)
    })
}

/// A small real model, in the cache.
fn embedding_model() -> anyhow::Result<String> {
    let paths = process::json_with_progress("embedding model", programs::image()?.args(["--json", "embedding-model"]))?;
    let directory = paths.get("directory").and_then(serde_json::Value::as_str);
    Ok(directory.context("image embedding-model: no directory")?.to_owned())
}

/// QEMU versions and firmware that predictions are compared with, in the cache; nothing is installed. An archive drops the
/// versions of its faster suites after a while: the comparison with them is then skipped, and says so.
fn host_tools() -> anyhow::Result<()> {
    let fetch = |name: &str| {
        process::run(name, programs::image()?.args(["host-tool", name]).stdout(std::process::Stdio::null()))
    };
    // For guests whose status lines a test reads.
    process::run("vhost-device-vsock", programs::image()?.arg("host-tool").stdout(std::process::Stdio::null()))?;
    fetch("qemu-10.0")?;
    for name in ["qemu-11.1", "ovmf-2026.08"] {
        if let Err(error) = fetch(name) {
            eprintln!("SKIPPED: comparing with {name}: {error:#}");
        }
    }
    Ok(())
}

/// The engine is linted and tested with what was compiled for the image: its C++ takes minutes.
fn engine(subcommand: &[&str], rest: &[&str]) -> anyhow::Result<std::process::Command> {
    let mut command = programs::image()?;
    command.args(["cargo", "--profile", "sim", "--"]).args(subcommand).args(["--package", "engine"]).args(rest);
    Ok(command)
}

/// How many tests run at once: half as many again as there are processors. Many wait most of their time, for servers,
/// deadlines and processes.
fn threads() -> String {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!("--test-threads={}", processors.saturating_add(processors.div_ceil(2)))
}

fn image_directory(profile: &str) -> anyhow::Result<std::path::PathBuf> {
    Ok(workspace::target()?.join(format!("image-{profile}")))
}

fn step(name: &str, run: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    process::check_interrupt()?;
    eprintln!("== {name}");
    let start = Instant::now();
    run()?;
    eprintln!("== {name}: passed in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn cargo(arguments: &[&str]) -> anyhow::Result<std::process::Command> {
    let mut command = process::command("cargo");
    command.args(arguments).current_dir(workspace::root()?);
    Ok(command)
}
