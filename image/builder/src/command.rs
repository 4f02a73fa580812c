// SPDX-License-Identifier: Apache-2.0
//! Runs a build tool with an environment that is listed, not inherited, and keeps what it said.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::progress::{Progress, Unit};
use crate::room::{NO_ROOM, Room, VARIABLES};

/// Why a tool's run failed.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// The tool is not installed.
    #[error("{tool} is not installed; {fix}")]
    Missing {
        /// Program name.
        tool: String,
        /// What installs it.
        fix: &'static str,
    },
    /// The tool could not be run.
    #[error("{tool} could not be run: {source}")]
    Run {
        /// Program name.
        tool: String,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The build root could not be entered.
    #[error("{tool} could not be run in the build root: {detail}")]
    NoRoom {
        /// Program name.
        tool: String,
        /// What was tried and the operating system's reason.
        detail: String,
    },
    /// The tool ended with a failure.
    #[error("{tool} failed ({status}):\n{tail}")]
    Failed {
        /// Program name.
        tool: String,
        /// Exit code, or `signal`.
        status: String,
        /// Lines that look like the reason, then the last lines it wrote.
        tail: String,
    },
}

/// A tool about to be run.
#[derive(Debug)]
pub struct Tool {
    program: String,
    fix: &'static str,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    room: Option<Room>,
}

impl Tool {
    /// `fix` says what installs the program when it is missing.
    #[must_use]
    pub fn new(program: &str, fix: &'static str) -> Self {
        let keep = |(name, _): &(OsString, OsString)| name.to_str().is_some_and(is_machine_setting);
        let variables = std::env::vars_os().filter(keep).collect();
        Self { program: program.to_owned(), fix, arguments: Vec::new(), variables, directory: None, room: None }
    }

    /// A program inside `room`, with a fixed environment: nothing of this process's own enters.
    #[must_use]
    pub(crate) fn inside(room: &Room, program: &str) -> Self {
        let variables = VARIABLES.iter().map(|(n, v)| (n.into(), v.into())).collect();
        let (program, room) = (program.to_owned(), Some(room.clone()));
        Self { program, fix: "", arguments: Vec::new(), variables, directory: None, room }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Sets the directory it runs in.
    #[must_use]
    pub fn directory(mut self, path: &Path) -> Self {
        self.directory = Some(path.to_owned());
        self
    }

    /// Runs it and returns what it wrote to stdout.
    ///
    /// # Errors
    /// [`ToolError`].
    pub fn output(self) -> Result<String, ToolError> {
        let output = self.command()?.output().map_err(|e| self.not_run(e))?;
        if !output.status.success() {
            let tail = String::from_utf8_lossy(&output.stderr);
            return Err(self.failed(output.status, tail.trim_end().to_owned()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it and counts the lines it writes to stdout and stderr as progress of `what`.
    ///
    /// # Errors
    /// [`ToolError`], with the last lines.
    pub fn run(self, what: &str, progress: &dyn Progress) -> Result<(), ToolError> {
        let (reader, writer) = std::io::pipe().map_err(|e| self.not_run(e))?;
        let errors = writer.try_clone().map_err(|e| self.not_run(e))?;
        let mut command = self.command()?;
        command.stdout(writer).stderr(errors);
        let mut child = command.spawn().map_err(|e| self.not_run(e))?;
        // The parent's ends of the pipe close with the command, so reading ends when the tool does.
        drop(command);
        let (mut tail, mut errors) = (VecDeque::new(), Vec::new());
        for (count, line) in BufReader::new(reader).split(b'\n').map_while(Result::ok).enumerate() {
            progress.advance(what, count as u64 + 1, None, Unit::Items);
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            let line = String::from_utf8_lossy(&line).into_owned();
            if errors.len() < TAIL_LINES && is_complaint(&line) {
                errors.push(line.clone());
            }
            tail.push_back(line);
        }
        progress.finish();
        let status = child.wait().map_err(|e| self.not_run(e))?;
        if status.success() {
            return Ok(());
        }
        // Tools that work in parallel go on for a while: the reason can stand far above the end.
        errors.retain(|line| !tail.contains(line));
        errors.extend(tail);
        Err(self.failed(status, errors.join("\n")))
    }

    /// The command as it will be started, for a caller that reads its output as it comes.
    ///
    /// # Errors
    /// [`ToolError::Run`] when the plan of a build root cannot be written.
    pub fn command(&self) -> Result<Command, ToolError> {
        if let Some(room) = &self.room {
            return self.command_inside(room).map_err(|e| self.not_run(e));
        }
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear().envs(self.variables.iter().map(|(n, v)| (n, v)));
        command.stdin(Stdio::null());
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        Ok(command)
    }

    fn command_inside(&self, room: &Room) -> std::io::Result<Command> {
        let text = |word: &OsString| {
            word.to_str().map(str::to_owned).ok_or_else(|| std::io::Error::other("an argument is not UTF-8"))
        };
        let arguments = self.arguments.iter().map(text).collect::<Result<_, _>>()?;
        let variables = self.variables.iter().map(|(name, value)| Ok((text(name)?, text(value)?)));
        let variables = variables.collect::<Result<_, std::io::Error>>()?;
        let directory = self.directory.as_deref().unwrap_or_else(|| Path::new("/"));
        room.command(&self.program, arguments, variables, directory)
    }

    /// The error of a command that could not be started or waited for.
    pub fn not_run(&self, source: std::io::Error) -> ToolError {
        if source.kind() == std::io::ErrorKind::NotFound {
            ToolError::Missing { tool: self.program.clone(), fix: self.fix }
        } else {
            ToolError::Run { tool: self.program.clone(), source }
        }
    }

    fn failed(&self, status: std::process::ExitStatus, tail: String) -> ToolError {
        if self.room.is_some() && status.code() == Some(NO_ROOM.into()) {
            return ToolError::NoRoom { tool: self.program.clone(), detail: tail };
        }
        ToolError::Failed {
            tool: self.program.clone(),
            status: status.code().map_or_else(|| "ended by a signal".to_owned(), |c| format!("exit code {c}")),
            tail,
        }
    }
}

fn is_complaint(line: &str) -> bool {
    ["error", "No rule to make", "No such file", "No space left", "undefined reference"]
        .iter()
        .any(|w| line.contains(w))
}

/// Settings of the machine that tools need to reach the network and find their own parts. Everything else is set by name.
fn is_machine_setting(name: &str) -> bool {
    const NAMES: [&str; 12] = [
        "PATH",
        "HOME",
        "USER",
        "TMPDIR",
        "CARGO_HOME",
        "RUSTUP_HOME",
        "RUSTUP_TOOLCHAIN",
        "LIBCLANG_PATH",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "CURL_CA_BUNDLE",
        "REQUESTS_CA_BUNDLE",
    ];
    const PREFIXES: [&str; 5] = ["CARGO_REGISTR", "CARGO_HTTP_", "CARGO_NET_", "CARGO_SOURCE_", "PIP_"];
    NAMES.contains(&name)
        || PREFIXES.iter().any(|p| name.starts_with(p))
        || name.to_ascii_lowercase().ends_with("_proxy")
}

const TAIL_LINES: usize = 30;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    #[test]
    fn the_environment_is_listed() {
        assert!(is_machine_setting("PATH") && is_machine_setting("https_proxy") && is_machine_setting("PIP_INDEX_URL"));
        for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CFLAGS", "LD_PRELOAD", "KCFLAGS", "GGML_NATIVE"] {
            assert!(!is_machine_setting(name), "{name}");
        }
    }

    #[test]
    fn failures_are_named() {
        let missing = Tool::new("no-such-tool-here", "install it").run("x", &Silent);
        assert!(matches!(missing, Err(ToolError::Missing { fix: "install it", .. })));
        let failed = Tool::new("sh", "").args(["-c", "echo out; echo err >&2; exit 3"]).run("x", &Silent);
        let Err(ToolError::Failed { status, tail, .. }) = failed else { panic!("{failed:?}") };
        assert_eq!(status, "exit code 3");
        assert!(tail.contains("out") && tail.contains("err"));
    }

    #[test]
    fn the_reason_is_kept_when_much_follows() {
        let script = "echo 'x.c:1: error: bad'; for i in $(seq 100); do echo line $i; done; exit 1";
        let failed = Tool::new("sh", "").args(["-c", script]).run("x", &Silent);
        let Err(ToolError::Failed { tail, .. }) = failed else { panic!("{failed:?}") };
        assert!(tail.starts_with("x.c:1: error: bad\nline 71\n") && tail.ends_with("line 100"), "{tail}");
    }

    #[test]
    fn output_is_returned() {
        assert_eq!(Tool::new("sh", "").env("A", "b").args(["-c", "echo $A"]).output().unwrap(), "b\n");
    }
}
