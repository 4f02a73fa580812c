// SPDX-License-Identifier: Apache-2.0
//! Runs a tool in a room of its own: a root directory with nothing of this machine in it but what is mounted by name,
//! without network, under a fixed user, host name, umask and environment.
//!
//! This program starts itself again twice. The *outer* stage makes the namespaces; the *inner* one is their first process,
//! mounts what the room shows, makes it the root and starts the tool. Both end with the program that wanted it.
//! What the room does **not** fix: the clock, the processor and the running kernel.

mod enter;

use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

pub use self::enter::{EnterError, Stage, enter};

/// A root directory and what is mounted in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Room {
    root: PathBuf,
    mounts: Vec<Mount>,
}

/// Something mounted in a room. Places are absolute, as the tool sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Mount {
    /// A file or directory of this machine.
    Bind {
        /// Where it is on this machine.
        from: PathBuf,
        /// Where the tool finds it.
        to: PathBuf,
        /// Whether the tool may change it.
        writable: bool,
    },
    /// An empty directory in memory.
    Scratch {
        /// Its place.
        to: PathBuf,
    },
    /// A file with a fixed text, inside a [`Mount::Scratch`].
    Text {
        /// Its place.
        to: PathBuf,
        /// What it says.
        text: String,
    },
    /// Makes a [`Mount::Scratch`] read-only from here on.
    Seal {
        /// Its place.
        to: PathBuf,
    },
}

/// What to run in a room: sent to the stages as one JSON document on their standard input.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    pub(crate) root: PathBuf,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) program: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) directory: PathBuf,
}

impl Room {
    /// A room whose root is the tree at `root`, shown read-only.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, mounts: Vec::new() }
    }

    /// Shows a file or directory of this machine, read-only.
    pub(crate) fn show(mut self, from: &Path, to: impl Into<PathBuf>) -> Self {
        self.mounts.push(Mount::Bind { from: from.to_owned(), to: to.into(), writable: false });
        self
    }

    /// Lets the tool write to a directory of this machine.
    pub(crate) fn lend(mut self, from: &Path, to: impl Into<PathBuf>) -> Self {
        self.mounts.push(Mount::Bind { from: from.to_owned(), to: to.into(), writable: true });
        self
    }

    /// Adds a mount.
    pub(crate) fn mount(mut self, mount: Mount) -> Self {
        self.mounts.push(mount);
        self
    }

    /// The command that runs `program` here, unstarted. Its standard input is taken.
    pub(crate) fn command(
        &self,
        program: &str,
        arguments: Vec<String>,
        variables: Vec<(String, String)>,
        directory: &Path,
    ) -> std::io::Result<Command> {
        let (root, mounts) = (self.root.clone(), self.mounts.clone());
        let directory = directory.to_owned();
        let plan = Plan { root, mounts, program: program.to_owned(), arguments, variables, directory };
        let mut file = tempfile::tempfile()?;
        file.write_all(&serde_json::to_vec(&plan)?)?;
        file.rewind()?;
        let mut command = Command::new(THIS_PROGRAM);
        command.args([SUBCOMMAND, "--stage", "outer"]).env_clear().stdin(Stdio::from(file));
        Ok(command)
    }
}

/// The hidden subcommand of `image` that enters a room.
pub(crate) const SUBCOMMAND: &str = "enter-room";
/// This program as it was started, also when the file has been replaced since: a build takes minutes.
pub(crate) const THIS_PROGRAM: &str = "/proc/self/exe";
/// The status of a stage that could not make the room, told from what tools return.
pub(crate) const NO_ROOM: u8 = 199;
/// What every tool in a room gets, whoever runs it wherever.
pub(crate) const VARIABLES: [(&str, &str); 7] = [
    ("PATH", "/rust/bin:/usr/bin:/usr/sbin"),
    ("HOME", "/tmp"),
    ("USER", "root"),
    ("LOGNAME", "root"),
    ("SHELL", "/bin/sh"),
    ("LC_ALL", "C"),
    ("TZ", "UTC"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_with_unknown_parts_is_refused() {
        let plan = r#"{"root":"/r","mounts":[{"kind":"scratch","to":"/a"}],"program":"p","arguments":[],"variables":[],"directory":"/"}"#;
        let read = |text: &str| serde_json::from_str::<Plan>(text);
        assert_eq!(read(plan).unwrap().mounts, [Mount::Scratch { to: "/a".into() }]);
        assert!(read(&plan.replacen('{', r#"{"network":true,"#, 1)).is_err());
        assert!(read(&plan.replace(r#""to":"/a""#, r#""to":"/a","size":1"#)).is_err());
        assert!(read(&plan.replace("scratch", "overlay")).is_err());
    }
}
