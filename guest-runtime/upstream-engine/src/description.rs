// SPDX-License-Identifier: Apache-2.0
//! Which server is started, and what it may reach: a file of the image, so it is measured.

use linux_sys::landlock::{Access, Reach};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};
use thiserror::Error;

/// A server, as a JSON document describes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Absolute path of the program. It may be executed.
    pub program: PathBuf,
    /// Its arguments. `{socket}`, `{model}` and `{context}` in them stand for the path it must listen on, the model's
    /// directory, and the most tokens of a conversation and its answer.
    pub arguments: Vec<String>,
    /// Its whole environment, with the same three.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Files, and directories with all below them, that it may execute and read.
    #[serde(default)]
    pub execute: Vec<PathBuf>,
    /// That it may read.
    #[serde(default)]
    pub read: Vec<PathBuf>,
    /// Directories in which it may make, read, write and remove files and sockets.
    #[serde(default)]
    pub write: Vec<PathBuf>,
    /// Devices that it may read, write and control.
    #[serde(default)]
    pub devices: Vec<PathBuf>,
    /// How long it may take from its start until it is healthy, in seconds, 1 to 3,600.
    #[serde(default = "default_start")]
    pub start_seconds: u32,
    /// How long it may say nothing to a request, in seconds, 1 to 3,600. A request that waits for its turn hears nothing.
    #[serde(default = "default_silence")]
    pub silence_seconds: u32,
}

/// What the placeholders in a description stand for.
#[derive(Debug, Clone)]
pub struct Places {
    /// Where `serve` connects. The server's sockets are made beside it.
    pub socket: PathBuf,
    /// The model's directory.
    pub model: PathBuf,
    /// Most tokens of a conversation and its answer.
    pub context: u32,
}

/// Why a description was refused.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum DescriptionError {
    /// It is longer than [`MAX_DESCRIPTION_BYTES`].
    #[error("the description is longer than {MAX_DESCRIPTION_BYTES} bytes")]
    TooLong,
    /// It is no such document.
    #[error("the description is not of the expected form: line {line}, column {column}")]
    Malformed {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// A path is relative.
    #[error("{field}: an absolute path is expected")]
    Relative {
        /// Which.
        field: &'static str,
    },
    /// A number is out of its range.
    #[error("{field}: 1 to {MAX_SECONDS} seconds are expected")]
    Seconds {
        /// Which.
        field: &'static str,
    },
    /// No argument and no variable tells the server where to listen.
    #[error("arguments: {{socket}} does not stand in them, nor in the environment")]
    NoSocket,
}

impl Server {
    /// Reads a description.
    ///
    /// # Errors
    /// [`DescriptionError`].
    pub fn parse(json: &[u8]) -> Result<Self, DescriptionError> {
        if json.len() > MAX_DESCRIPTION_BYTES {
            return Err(DescriptionError::TooLong);
        }
        let malformed =
            |error: serde_json::Error| DescriptionError::Malformed { line: error.line(), column: error.column() };
        let server: Self = serde_json::from_slice(json).map_err(malformed)?;
        let Self { program, execute, read, write, devices, .. } = &server;
        for (field, paths) in [
            ("program", std::slice::from_ref(program)),
            ("execute", execute),
            ("read", read),
            ("write", write),
            ("devices", devices),
        ] {
            if paths.iter().any(|path| !path.is_absolute()) {
                return Err(DescriptionError::Relative { field });
            }
        }
        for (field, seconds) in [("start_seconds", server.start_seconds), ("silence_seconds", server.silence_seconds)] {
            if !(1..=MAX_SECONDS).contains(&seconds) {
                return Err(DescriptionError::Seconds { field });
            }
        }
        let told = |text: &String| text.contains(SOCKET);
        if server.arguments.iter().any(told) || server.environment.values().any(told) {
            Ok(server)
        } else {
            Err(DescriptionError::NoSocket)
        }
    }

    /// What the server, and with it this process, may reach.
    #[must_use]
    pub fn reach(&self, places: &Places) -> Reach {
        let Self { program, execute, read, write, devices, .. } = self;
        let each = |paths: &[PathBuf], access| paths.iter().map(|path| (path.clone(), access)).collect::<Vec<_>>();
        let beside = places.socket.parent().map(Path::to_path_buf);
        let mut paths = vec![
            (program.clone(), Access::Execute),
            (places.model.clone(), Access::Read),
            // What its standard streams are.
            (PathBuf::from("/dev/null"), Access::Device),
        ];
        paths.extend(beside.map(|directory| (directory, Access::MakeSocket)));
        paths.extend(each(execute, Access::Execute));
        paths.extend(each(read, Access::Read));
        paths.extend(each(write, Access::Keep));
        paths.extend(each(devices, Access::Device));
        Reach { paths, tcp_listen: None }.with_randomness()
    }

    /// Its arguments, where it listens on `socket`.
    pub(crate) fn arguments(&self, places: &Places, socket: &Path) -> Vec<String> {
        self.arguments.iter().map(|argument| filled(argument, places, socket)).collect()
    }

    /// Its environment, alike.
    pub(crate) fn environment(&self, places: &Places, socket: &Path) -> Vec<(String, String)> {
        self.environment.iter().map(|(name, value)| (name.clone(), filled(value, places, socket))).collect()
    }

    /// Patience from start to health.
    pub(crate) fn start(&self) -> Duration {
        Duration::from_secs(self.start_seconds.into())
    }

    /// Patience with a request.
    pub(crate) fn silence(&self) -> Duration {
        Duration::from_secs(self.silence_seconds.into())
    }
}

fn filled(text: &str, places: &Places, socket: &Path) -> String {
    text.replace(SOCKET, &socket.to_string_lossy())
        .replace("{model}", &places.model.to_string_lossy())
        .replace("{context}", &places.context.to_string())
}

fn default_start() -> u32 {
    1500
}

fn default_silence() -> u32 {
    300
}

const SOCKET: &str = "{socket}";
/// Longest description.
pub const MAX_DESCRIPTION_BYTES: usize = 64 << 10;
const MAX_SECONDS: u32 = 3600;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"program":"/usr/bin/s","arguments":["{model}","--uds={socket}","{context}","{\"a\":1}"]}"#;

    #[test]
    fn placeholders_are_filled_and_nothing_else() {
        let server = Server::parse(GOOD.as_bytes()).unwrap();
        let places = Places { socket: "/run/e/engine.sock".into(), model: "/model".into(), context: 77 };
        let filled = server.arguments(&places, Path::new("/run/e/up"));
        assert_eq!(filled, ["/model", "--uds=/run/e/up", "77", "{\"a\":1}"]);
        assert_eq!((server.start_seconds, server.silence_seconds), (1500, 300));
        let reach = server.reach(&places).paths;
        assert!(
            reach.contains(&("/run/e".into(), Access::MakeSocket)) && reach.contains(&("/model".into(), Access::Read))
        );
        assert!(!reach.iter().any(|(path, access)| *access == Access::Execute && path != Path::new("/usr/bin/s")));
    }

    #[test]
    fn each_rule_is_checked() {
        let refused = |from: &str, to: &str| Server::parse(GOOD.replace(from, to).as_bytes()).unwrap_err();
        assert_eq!(refused("/usr/bin/s", "s"), DescriptionError::Relative { field: "program" });
        assert_eq!(refused("{socket}", "x"), DescriptionError::NoSocket);
        assert!(matches!(refused("arguments", "argument"), DescriptionError::Malformed { .. }));
        assert!(matches!(refused("]}", r#"],"more":1}"#), DescriptionError::Malformed { .. }));
        assert!(matches!(refused("]}", "]} x"), DescriptionError::Malformed { .. }));
        for (field, value) in [("start_seconds", "0"), ("silence_seconds", "3601")] {
            assert_eq!(refused("]}", &format!("],\"{field}\":{value}}}")), DescriptionError::Seconds { field });
        }
        for field in ["execute", "read", "write", "devices"] {
            assert_eq!(refused("]}", &format!("],\"{field}\":[\"a\"]}}")), DescriptionError::Relative { field });
        }
        assert_eq!(Server::parse(&vec![b' '; MAX_DESCRIPTION_BYTES + 1]), Err(DescriptionError::TooLong));
    }
}
