// SPDX-License-Identifier: Apache-2.0
//! `host-agent manual`: pages and completions from the command line's own description.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::cli::Cli;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  host-agent manual --out /tmp/share\n  man -l /tmp/share/man/man1/host-agent-gpu-bind.1"
)]
pub(crate) struct ManualArgs {
    /// Directory; `man/man1`, `bash-completion/completions`, `zsh/vendor-completions` and `fish/vendor_completions.d` are
    /// made in it, as /usr/share has them.
    #[arg(long)]
    out: PathBuf,
}

/// Writes one page for each command, and completions for three shells.
pub(crate) fn run(args: &ManualArgs) -> anyhow::Result<ExitCode> {
    let pages = directory(&args.out, "man/man1")?;
    clap_mangen::generate_to(Cli::command(), &pages).with_context(|| pages.display().to_string())?;
    for (shell, place, name) in [
        (Shell::Bash, "bash-completion/completions", "host-agent"),
        (Shell::Zsh, "zsh/vendor-completions", "_host-agent"),
        (Shell::Fish, "fish/vendor_completions.d", "host-agent.fish"),
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "host-agent", &mut script);
        let path = directory(&args.out, place)?.join(name);
        std::fs::write(&path, script).with_context(|| path.display().to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn directory(out: &Path, place: &str) -> anyhow::Result<PathBuf> {
    let path = out.join(place);
    std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
    Ok(path)
}
