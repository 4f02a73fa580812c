// SPDX-License-Identifier: Apache-2.0
//! Programs as processes: called with arguments, answering with an exit code and one JSON document.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use types::Refusal;

/// A program, and what stands before its own arguments.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    before: Vec<OsString>,
    variables: Vec<(String, PathBuf)>,
    directory: Option<PathBuf>,
}

/// What a call gave.
#[derive(Debug)]
pub struct Answer {
    /// Exit code.
    pub code: i32,
    /// Last line of standard output, as JSON.
    pub document: Value,
    /// Standard error.
    pub log: String,
}

impl Program {
    /// A program that takes no roots.
    #[must_use]
    pub fn new(path: &str) -> Self {
        Self { path: path.into(), before: Vec::new(), variables: Vec::new(), directory: None }
    }

    /// The same one under a simulated root.
    #[must_use]
    pub fn under(mut self, root: &Path) -> Self {
        self.before.extend(["--sim-root".into(), root.into()]);
        self
    }

    /// The same one with the roots of made GPUs (a file with two lines).
    ///
    /// # Errors
    /// The file can't be read.
    pub fn with_gpu_roots(mut self, file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        self.before.push("--sim-gpu-roots".into());
        self.before.extend(text.lines().map(OsString::from));
        Ok(self)
    }

    /// The same one with a path in a variable of its environment.
    #[must_use]
    pub fn with_variable(mut self, name: &str, path: &Path) -> Self {
        self.variables.push((name.to_owned(), path.to_owned()));
        self
    }

    /// The same one, started in a directory.
    #[must_use]
    pub fn in_directory(self, directory: &Path) -> Self {
        Self { directory: Some(directory.to_owned()), ..self }
    }

    /// A command that gets nothing to read.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.before).stdin(Stdio::null()).env("CHRYSALIS_LOG", "warn");
        command.envs(self.variables.iter().map(|(name, path)| (name, path)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    /// Calls it with `--json` and waits for its end.
    ///
    /// # Errors
    /// It does not start, or was killed.
    pub fn call<A: Into<OsString>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Answer> {
        let mut command = self.command();
        command.args(arguments.into_iter().map(Into::into)).arg("--json");
        let output = command.output().with_context(|| self.path.display().to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let document = text.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or(Value::Null);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Answer { code: output.status.code().context("killed")?, document, log })
    }
}

impl Answer {
    /// The reasons of a refusal, none when it was accepted.
    ///
    /// # Errors
    /// Exit code and document contradict each other, or it failed.
    pub fn reasons(&self) -> Result<Vec<Refusal>> {
        let shown = || format!("exit code {}: {}\n{}", self.code, self.document, self.log);
        let reasons = match self.document.get("reasons") {
            None => Vec::new(),
            Some(list) => serde_json::from_value(list.clone()).with_context(shown)?,
        };
        let accepted = self.document.get("accepted").and_then(Value::as_bool);
        let consistent =
            matches!((self.code, accepted, reasons.is_empty()), (0, Some(true), true) | (2, Some(false), false));
        ensure!(consistent, "neither accepted nor refused: {}", shown());
        Ok(reasons)
    }
}
