// SPDX-License-Identifier: Apache-2.0
//! Installing what building and running need: on Debian, by package.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use crate::{process, wasm};

/// Debian packages, each with what it is for.
const PACKAGES: &[(&str, &str)] = &[
    ("curl", "fetching pinned inputs"),
    ("g++", "C++ in host programs and fuzzers"),
    ("gcc", "host programs"),
    ("libc6-dev", "host programs"),
    ("postgresql", "tests of the store on a database server"),
    ("python3-pip", "fetching pinned Python packages"),
    ("qemu-system-x86", "running guests"),
    ("softhsm2", "tests of keys wrapped by a PKCS#11 token"),
    ("swtpm", "comparing predictions with the log of real firmware"),
    ("tmux", "driving the host agent's live view in a terminal"),
    ("util-linux", "ending child processes with their parent"),
    ("xz-utils", "unpacking pinned inputs"),
];

/// Installs what is missing, or prints the command that does.
pub(crate) fn run() -> anyhow::Result<()> {
    let missing: Vec<_> = PACKAGES.iter().filter(|(name, _)| !installed(name)).collect();
    install_nextest()?;
    if let Err(error) = install_wasm_target() {
        // The rest is tested without it, and the tests that miss it say so.
        eprintln!("setup: {error:#}: nothing will be tested in WebAssembly");
    }
    if missing.is_empty() {
        eprintln!("setup: everything is installed");
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|(name, _)| *name).collect();
    for (name, purpose) in &missing {
        eprintln!("setup: {name} is missing ({purpose})");
    }
    let command = format!("apt-get update && apt-get install -y --no-install-recommends {}", names.join(" "));
    anyhow::ensure!(is_root(), "run this as root, then try again:\n  {command}");
    anyhow::ensure!(on_path("apt-get"), "this is not Debian: install by hand what is named above");
    eprintln!("setup: {command}");
    process::run(
        "setup: apt-get update",
        process::command("apt-get")
            .args(["update", "-qq"])
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(Stdio::null()),
    )?;
    process::run(
        "setup: apt-get install",
        process::command("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&names)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(Stdio::null()),
    )?;
    let still: Vec<_> = names.iter().filter(|name| !installed(name)).collect();
    anyhow::ensure!(still.is_empty(), "setup: apt-get did not install {still:?}");
    Ok(())
}

/// cargo-nextest runs the tests and counts them.
fn install_nextest() -> anyhow::Result<()> {
    if on_path("cargo-nextest") {
        return Ok(());
    }
    eprintln!("setup: cargo-nextest is missing (running tests); building it takes some minutes");
    process::run(
        "setup: cargo install cargo-nextest",
        process::command("cargo").args(["install", "--locked", "cargo-nextest", "--version", "0.9.143"]),
    )
}

/// The standard library for WebAssembly. It is no part of the toolchain file, which is an input of images: they need none of it.
pub(crate) fn install_wasm_target() -> anyhow::Result<()> {
    let root = crate::workspace::root()?;
    if has_wasm_target()? {
        return Ok(());
    }
    anyhow::ensure!(on_path("rustup"), "install the standard library of this Rust version for {}", wasm::TARGET);
    eprintln!("setup: the target {} is missing (the page verifier)", wasm::TARGET);
    process::run(
        "setup: rustup target add",
        process::command("rustup").args(["target", "add", wasm::TARGET]).current_dir(root),
    )
}

/// Whether Rust can compile for WebAssembly here.
pub(crate) fn has_wasm_target() -> anyhow::Result<bool> {
    let mut rustc = process::command("rustc");
    rustc.args(["--print", "target-libdir", "--target", wasm::TARGET]).current_dir(crate::workspace::root()?);
    let output = rustc.output().context("rustc --print target-libdir")?;
    Ok(output.status.success() && Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}

fn installed(package: &str) -> bool {
    let output = Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]).stderr(Stdio::null()).output();
    output.is_ok_and(|output| output.stdout == b"install ok installed") || substitute(package)
}

/// Some tools count wherever they come from.
fn substitute(package: &str) -> bool {
    match package {
        "python3-pip" => on_path("pip") || on_path("pip3"),
        "curl" | "swtpm" | "gcc" | "g++" | "tmux" => on_path(package),
        "qemu-system-x86" => on_path("qemu-system-x86_64"),
        "util-linux" => on_path("setpriv"),
        "xz-utils" => on_path("xz"),
        _ => false,
    }
}

/// Whether a program can be started by its name.
pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}

/// Fails early where the machine cannot do the job at all.
pub(crate) fn check_platform() -> anyhow::Result<()> {
    anyhow::ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "only x86-64 Linux can build and run images"
    );
    let space = free_gib(&crate::workspace::cache()?).context("free space")?;
    anyhow::ensure!(
        space >= MIN_FREE_GIB,
        "the cache needs {MIN_FREE_GIB} GiB of free disk, there are {space}: free some, or set CHRYSALIS_CACHE"
    );
    Ok(())
}

fn free_gib(path: &Path) -> anyhow::Result<u64> {
    std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    let output = Command::new("df").args(["--output=avail", "-B1G"]).arg(path).output().context("df")?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().nth(1).and_then(|line| line.trim().parse().ok()).context("df")
}

const MIN_FREE_GIB: u64 = 8;
