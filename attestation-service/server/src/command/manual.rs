// SPDX-License-Identifier: Apache-2.0
//! `manual`: pages and completions from the command line's own description.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;
use serde_json::json;

use crate::{cli::Cli, outcome::Outcome};

/// Writes one page for each command, and completions for three shells.
pub(super) fn manual(out: &Path) -> anyhow::Result<Outcome> {
    let pages = directory(out, "man/man1")?;
    clap_mangen::generate_to(Cli::command(), &pages).with_context(|| pages.display().to_string())?;
    for (shell, place, name) in [
        (Shell::Bash, "bash-completion/completions", NAME),
        (Shell::Zsh, "zsh/vendor-completions", "_attestation-service"),
        (Shell::Fish, "fish/vendor_completions.d", "attestation-service.fish"),
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
        let path = directory(out, place)?.join(name);
        std::fs::write(&path, script).with_context(|| path.display().to_string())?;
    }
    Ok(Outcome::accepted(vec![format!("written below {}", out.display())], json!({ "out": out.display().to_string() })))
}

fn directory(out: &Path, place: &str) -> anyhow::Result<PathBuf> {
    let path = out.join(place);
    std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
    Ok(path)
}

const NAME: &str = "attestation-service";
