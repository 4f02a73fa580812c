// SPDX-License-Identifier: Apache-2.0
//! Programs as an image's profile has them, and the demonstration model: all from the cache, or made now.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::ValueEnum;
use serde_json::Value;

use crate::{process, programs};

/// How programs are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compiled {
    /// As the image `cpu` has them: for AVX-512.
    Cpu,
    /// As `cpu` has them, for AVX2 instead of AVX-512.
    Avx2,
    /// As the image `sim` has them: for every processor of the last fifteen years.
    Sim,
}

impl Compiled {
    /// The fastest that this processor can run.
    pub(crate) fn for_this_processor() -> Self {
        Self::for_processor(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
    }

    fn for_processor(cpuinfo: &str) -> Self {
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        let has = |flag: &&str| flags.split_ascii_whitespace().any(|word| word == *flag);
        match (AVX2.iter().all(has), AVX512.iter().all(has)) {
            (true, true) => Self::Cpu,
            (true, false) => Self::Avx2,
            (false, _) => Self::Sim,
        }
    }

    /// In a word.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Avx2 => "avx2",
            Self::Sim => "sim",
        }
    }

    const fn words(self) -> &'static [&'static str] {
        match self {
            Self::Cpu => &["--profile", "cpu"],
            Self::Avx2 => &["--profile", "cpu", "--without-avx512"],
            Self::Sim => &["--profile", "sim"],
        }
    }
}

/// Where the engine's programs stand that these arguments of cargo name. Compiling it the first time takes minutes.
pub(crate) fn engine(compiled: Compiled, targets: &[&str]) -> anyhow::Result<PathBuf> {
    let cargo = [&["cargo"], compiled.words(), &["--", "build", "--package", "engine"], targets].concat();
    path(&image(&cargo)?, "built")
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

/// As /proc/cpuinfo names what x86-64-v3 has.
const AVX2: [&str; 7] = ["abm", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"];
/// What the profile `cpu` is compiled for besides.
const AVX512: [&str; 5] = ["avx512f", "avx512bw", "avx512vl", "avx512vbmi", "avx512_vnni"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_compiled_for_what_the_processor_has() {
        let flags = |names: &[&str]| format!("processor\t: 0\nflags\t\t: fpu {}\nbugs\t\t: avx2\n", names.join(" "));
        let all = [&AVX2[..], &AVX512].concat();
        for (has, compiled) in [
            (flags(&all), Compiled::Cpu),
            (flags(&AVX2), Compiled::Avx2),
            (flags(&all[..all.len() - 1]), Compiled::Avx2),
            (flags(&AVX512), Compiled::Sim),
            (flags(&[]), Compiled::Sim),
            (String::new(), Compiled::Sim),
        ] {
            assert_eq!(Compiled::for_processor(&has), compiled, "{has}");
        }
    }
}
