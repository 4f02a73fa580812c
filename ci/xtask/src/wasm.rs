// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask wasm`: the page verifier as WebAssembly. A module may import nothing and export only what is known; then
//! the tests demand that it decides as native code does.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Args;

use crate::{process, setup, workspace};

#[derive(Debug, Args)]
pub(crate) struct WasmArgs {
    /// Build as for a page: optimised, as small as this compiler makes it. Its compilation takes some minutes.
    #[arg(long)]
    release: bool,
}

/// Builds and checks the modules, and runs the tests with them.
pub(crate) fn run(args: &WasmArgs) -> anyhow::Result<()> {
    setup::install_wasm_target()?;
    let directory = build(args.release)?;
    let mut tests = process::command("cargo");
    tests.args(["nextest", "run", "--locked", "-p", "page-verifier-sim", "-p", "page-verifier"]);
    tests.current_dir(workspace::root()?).env(VARIABLE, &directory);
    process::run("tests in WebAssembly", &mut tests)
}

/// Builds the modules and checks their borders; gives their directory, for [`VARIABLE`].
pub(crate) fn build(release: bool) -> anyhow::Result<PathBuf> {
    let mut cargo = process::command("cargo");
    cargo.args(["build", "--locked", "--lib", "--target", TARGET]).current_dir(workspace::root()?);
    MODULES.iter().for_each(|(package, _)| _ = cargo.args(["-p", package]));
    if release {
        cargo.arg("--release");
    }
    process::run("build for WebAssembly", &mut cargo)?;
    let directory = workspace::target()?.join(TARGET).join(if release { "release" } else { "debug" });
    for (_, name) in MODULES {
        let path = directory.join(name);
        let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
        check(&bytes).with_context(|| format!("{name} is no module for a page"))?;
        eprintln!("{name}: {} KiB, no imports", bytes.len().div_ceil(1024));
    }
    Ok(directory)
}

/// A module without imports reaches nothing: no network, file, clock or randomness. One without a start function does
/// nothing before it is asked.
fn check(module: &[u8]) -> anyhow::Result<()> {
    let mut rest = module.strip_prefix(MAGIC).context("it is not WebAssembly of version 1")?;
    let mut functions = Vec::new();
    while let Some((id, after)) = rest.split_first() {
        rest = after;
        let len = number(&mut rest)?;
        let (mut section, after) = rest.split_at_checked(len).context("a section ends after the module")?;
        rest = after;
        match *id {
            IMPORTS => {
                let count = number(&mut section)?;
                let first = if count == 0 { String::new() } else { name(&mut section)? + "." + &name(&mut section)? };
                ensure!(count == 0, "it has {count} imports, the first is {first}");
            }
            START => anyhow::bail!("it has a start function"),
            EXPORTS => {
                for _ in 0..number(&mut section)? {
                    let name = name(&mut section)?;
                    let (kind, after) = section.split_first().context("the exports are cut")?;
                    section = after;
                    number(&mut section)?;
                    if *kind == FUNCTION {
                        functions.push(name);
                    }
                }
            }
            _ => {}
        }
    }
    functions.sort();
    ensure!(functions == EXPORTED, "it exports {functions:?}");
    Ok(())
}

/// A number in LEB128 of at most 32 bits.
fn number(bytes: &mut &[u8]) -> anyhow::Result<usize> {
    let mut value = 0_u64;
    for shift in (0..35).step_by(7) {
        let (byte, rest) = bytes.split_first().context("a number is cut")?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return usize::try_from(value).context("a number is too large");
        }
    }
    anyhow::bail!("a number is too long")
}

fn name(bytes: &mut &[u8]) -> anyhow::Result<String> {
    let len = number(bytes)?;
    let (name, rest) = bytes.split_at_checked(len).context("a name is cut")?;
    *bytes = rest;
    Ok(String::from_utf8(name.to_vec())?)
}

/// The directory of built modules, for the tests.
pub(crate) const VARIABLE: &str = "CHRYSALIS_WASM";
/// What the modules are compiled for.
pub(crate) const TARGET: &str = "wasm32-unknown-unknown";

/// Packages and their modules.
const MODULES: [(&str, &str); 2] =
    [("page-verifier-wasm", "page_verifier_wasm.wasm"), ("page-verifier-sim", "page_verifier_sim.wasm")];
const EXPORTED: [&str; 4] = ["chrysalis_answer", "chrysalis_begin", "chrysalis_decide", "chrysalis_give"];
const MAGIC: &[u8] = b"\0asm\x01\0\0\0";
/// Numbers of sections ("WebAssembly Core Specification", section 5.5.2) and of a kind of export (5.5.10).
const IMPORTS: u8 = 2;
const EXPORTS: u8 = 7;
const START: u8 = 8;
const FUNCTION: u8 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    fn section(id: u8, content: &[u8]) -> Vec<u8> {
        // The length as two bytes of LEB128, as linkers write it.
        let len = content.len();
        [&[id, u8::try_from(len & 0x7f).unwrap() | 0x80, u8::try_from(len >> 7).unwrap()], content].concat()
    }

    fn text(name: &str) -> Vec<u8> {
        [&[u8::try_from(name.len()).unwrap()], name.as_bytes()].concat()
    }

    fn exports(names: &[&str]) -> Vec<u8> {
        let mut content = vec![u8::try_from(names.len() + 1).unwrap()];
        content.extend([text("memory"), vec![2, 0]].concat());
        names.iter().for_each(|name| content.extend([text(name), vec![0, 0x81, 1]].concat()));
        section(EXPORTS, &content)
    }

    fn module(sections: &[Vec<u8>]) -> Vec<u8> {
        [MAGIC, &sections.concat()].concat()
    }

    #[test]
    fn a_module_reaches_nothing() {
        let good = module(&[section(1, &[0]), exports(&EXPORTED), section(0, b"\x04name")]);
        check(&good).unwrap();
        check(&module(&[section(IMPORTS, &[0]), exports(&EXPORTED)])).unwrap();
        let imported = [vec![1], text("env"), text("now"), vec![0, 0]].concat();
        let error = check(&module(&[section(IMPORTS, &imported), exports(&EXPORTED)])).unwrap_err().to_string();
        assert!(error.contains("1 imports") && error.contains("env.now"), "{error}");
        assert!(check(&module(&[exports(&EXPORTED), section(START, &[0])])).is_err(), "it starts by itself");
        assert!(check(&module(&[exports(&EXPORTED[1..])])).is_err(), "a function is missing");
        let more = [EXPORTED.as_slice(), &["more"]].concat();
        assert!(check(&module(&[exports(&more)])).is_err(), "a function more");
        assert!(check(&module(&[])).is_err() && check(b"").is_err() && check(&good[1..]).is_err());
        let cut = good.len() - 2;
        assert!(check(&good[..cut]).is_err(), "it is cut");
    }
}
