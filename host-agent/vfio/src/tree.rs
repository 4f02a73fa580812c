// SPDX-License-Identifier: Apache-2.0
//! Reading and writing below a root directory that may be a recording of another machine.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{Mode, fstat};

use crate::recording::{Log, LoggedReads, Node, NodeKind, Recording, node_of};

/// sysfs, procfs, device nodes and configuration files below a root.
///
/// No path leaves the root: symbolic links, absolute ones too, are resolved inside it (`RESOLVE_IN_ROOT`). A file
/// [`RECORDING`](Self::RECORDING) in the root makes it a recording: device nodes and sockets, which a tree of plain files
/// cannot have, are then looked up there.
#[derive(Debug)]
pub struct HostTree {
    directory: OwnedFd,
    shown: PathBuf,
    recording: Option<Recording>,
    log: RefCell<Option<Log>>,
}

/// Why something below the root could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The root cannot be opened.
    #[error("{path}: not a directory that can be opened")]
    Root {
        /// The root.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: Errno,
    },
    /// The recording's description is not one.
    #[error("{path}: not a description of a recording")]
    Recording {
        /// The file.
        path: String,
        /// The reader's reason.
        #[source]
        source: serde_json::Error,
    },
    /// The operation failed.
    #[error("{path}: {source}")]
    Io {
        /// The file, without the root.
        path: String,
        /// The system's reason.
        #[source]
        source: Errno,
    },
    /// It is no regular file.
    #[error("{path}: not a regular file")]
    NotAFile {
        /// The file.
        path: String,
    },
    /// More than may be read.
    #[error("{path}: more than {max} bytes or entries")]
    TooLarge {
        /// The file or directory.
        path: String,
        /// The most that is read.
        max: usize,
    },
}

impl TreeError {
    /// Whether the file is simply not there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source: Errno::ENOENT | Errno::ENOTDIR | Errno::ENODEV, .. })
    }

    /// Whether permission is what is missing.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Io { source: Errno::EACCES | Errno::EPERM, .. })
    }
}

impl HostTree {
    /// Name of the file that describes a recording, in its root.
    pub const RECORDING: &'static str = "recording.json";

    /// Opens `root`; `/` is the machine at hand.
    ///
    /// # Errors
    /// [`TreeError::Root`], or [`TreeError::Recording`] if the root says that it is a recording and is none.
    pub fn open(root: &Path) -> Result<Self, TreeError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = nix::fcntl::open(root, flags, Mode::empty())
            .map_err(|source| TreeError::Root { path: root.to_owned(), source })?;
        let mut tree = Self { directory, shown: root.to_owned(), recording: None, log: RefCell::new(None) };
        match tree.read(Self::RECORDING, MAX_RECORDING) {
            Ok(bytes) => {
                let path = Self::RECORDING.to_owned();
                let recording =
                    serde_json::from_slice(&bytes).map_err(|source| TreeError::Recording { path, source })?;
                tree.recording = Some(recording);
            }
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error),
        }
        Ok(tree)
    }

    /// The root as it was given.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.shown
    }

    /// The description, if the root is a recording.
    #[must_use]
    pub fn recording(&self) -> Option<&Recording> {
        self.recording.as_ref()
    }

    /// From now on remembers what is read.
    pub fn start_logging(&self) {
        *self.log.borrow_mut() = Some(Log::default());
    }

    /// The files (path, content), links (path, last component of the target), directories and nodes that were read since
    /// [`Self::start_logging`].
    #[must_use]
    pub fn take_log(&self) -> LoggedReads {
        let log = self.log.borrow_mut().take().unwrap_or_default();
        LoggedReads {
            files: log.files,
            links: log.links,
            directories: log.directories.into_keys().collect(),
            nodes: log.nodes,
        }
    }

    /// A small text file, without the white space around it.
    ///
    /// # Errors
    /// [`TreeError`]; more than 64 KiB are refused.
    pub fn text(&self, path: &str) -> Result<String, TreeError> {
        let bytes = self.read(path, MAX_TEXT)?;
        self.note(|log| {
            log.files.insert(path.to_owned(), bytes.clone());
        });
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Those lines of a text file that `keep` lets through, as it returns them. Only these are remembered for a recording,
    /// so that identifiers of the machine stay out of it. `keep` must accept its own output.
    ///
    /// # Errors
    /// [`TreeError`]; of a file larger than 256 KiB the beginning is read.
    pub fn lines(&self, path: &str, keep: impl Fn(&str) -> Option<String>) -> Result<Vec<String>, TreeError> {
        let mut bytes = Vec::new();
        self.file(path)?.take(MAX_LINES).read_to_end(&mut bytes).map_err(|error| io(path, &error))?;
        let kept: Vec<String> = String::from_utf8_lossy(&bytes).lines().filter_map(keep).collect();
        self.note(|log| {
            let mut text = kept.join("\n");
            text.push('\n');
            log.files.insert(path.to_owned(), text.into_bytes());
        });
        Ok(kept)
    }

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// [`TreeError`]; more than 65,536 entries are refused.
    pub fn entries(&self, path: &str) -> Result<Vec<String>, TreeError> {
        let fd = self.resolve(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        // The descriptor is the directory that was resolved inside the root; the name leads to it and nowhere else.
        let listed =
            std::fs::read_dir(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|error| io(path, &error))?;
        let mut names = Vec::new();
        for entry in listed {
            names.push(entry.map_err(|error| io(path, &error))?.file_name().to_string_lossy().into_owned());
            if names.len() > MAX_ENTRIES {
                return Err(TreeError::TooLarge { path: path.to_owned(), max: MAX_ENTRIES });
            }
        }
        names.sort_unstable();
        self.note(|log| {
            log.directories.insert(path.to_owned(), ());
            for name in &names {
                log.directories.insert(format!("{path}/{name}"), ());
            }
        });
        Ok(names)
    }

    /// The last component of what a symbolic link points to; `None` if there is no such link.
    #[must_use]
    pub fn link_name(&self, path: &str) -> Option<String> {
        let name = Path::new(&self.link_target(path).ok()?).file_name()?.to_str()?.to_owned();
        self.note(|log| {
            log.links.insert(path.to_owned(), name.clone());
        });
        Some(name)
    }

    /// What a symbolic link points to, as it is written there. Not remembered for a recording.
    ///
    /// # Errors
    /// [`TreeError::Io`].
    pub fn link_target(&self, path: &str) -> Result<String, TreeError> {
        let fd = self.resolve(path, OFlag::O_PATH | OFlag::O_NOFOLLOW)?;
        let target = readlinkat(fd, "").map_err(|source| TreeError::Io { path: path.to_owned(), source })?;
        Ok(target.to_string_lossy().into_owned())
    }

    /// What kind of file there is and who may open it; `None` if there is none.
    #[must_use]
    pub fn node(&self, path: &str) -> Option<Node> {
        let node = match self.recording.as_ref().and_then(|recording| recording.nodes.get(path)) {
            Some(node) => node.clone(),
            None => node_of(&fstat(self.resolve(path, OFlag::O_PATH).ok()?).ok()?),
        };
        self.note(|log| {
            log.nodes.insert(path.to_owned(), node.clone());
        });
        Some(node)
    }

    /// Whether a file of any kind is there.
    #[must_use]
    pub fn exists(&self, path: &str) -> bool {
        self.node(path).is_some()
    }

    /// Free bytes of the file system that holds `path`, or its nearest existing parent.
    ///
    /// # Errors
    /// [`TreeError::Io`].
    pub fn free_bytes(&self, path: &str) -> Result<u64, TreeError> {
        let failed = |source| TreeError::Io { path: path.to_owned(), source };
        let mut at = Path::new(path);
        loop {
            let text = at.to_string_lossy();
            match self.resolve(if text.is_empty() { "." } else { &text }, OFlag::O_PATH) {
                Ok(fd) => {
                    let facts = nix::sys::statvfs::fstatvfs(fd).map_err(failed)?;
                    return Ok(facts.blocks_available().saturating_mul(facts.fragment_size()));
                }
                Err(error) if error.is_missing() => at = at.parent().ok_or(error)?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes into a file that is there, as sysfs wants it: one write.
    ///
    /// # Errors
    /// [`TreeError`]; a missing file is not made.
    pub fn write(&self, path: &str, value: &str) -> Result<(), TreeError> {
        let fd = self.resolve(path, OFlag::O_WRONLY | OFlag::O_TRUNC)?;
        let failed = |source| TreeError::Io { path: path.to_owned(), source };
        let mut file = File::from(fd);
        let length = value.len();
        let written = file.write(value.as_bytes()).map_err(|error| io(path, &error))?;
        if written == length { Ok(()) } else { Err(failed(Errno::EIO)) }
    }

    /// A file opened for reading and writing, for registers and configuration space.
    ///
    /// # Errors
    /// [`TreeError`]; only regular files are opened.
    pub fn open_read_write(&self, path: &str) -> Result<File, TreeError> {
        regular(path, self.resolve(path, OFlag::O_RDWR | OFlag::O_SYNC)?)
    }

    fn read(&self, path: &str, max: usize) -> Result<Vec<u8>, TreeError> {
        let mut bytes = Vec::new();
        let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
        self.file(path)?.take(limit).read_to_end(&mut bytes).map_err(|error| io(path, &error))?;
        if bytes.len() > max { Err(TreeError::TooLarge { path: path.to_owned(), max }) } else { Ok(bytes) }
    }

    fn file(&self, path: &str) -> Result<File, TreeError> {
        regular(path, self.resolve(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?)
    }

    fn resolve(&self, path: &str, flags: OFlag) -> Result<OwnedFd, TreeError> {
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        openat2(&self.directory, path, how).map_err(|source| TreeError::Io { path: path.to_owned(), source })
    }

    fn note(&self, add: impl FnOnce(&mut Log)) {
        if let Some(log) = self.log.borrow_mut().as_mut() {
            add(log);
        }
    }
}

fn regular(path: &str, fd: OwnedFd) -> Result<File, TreeError> {
    let facts = fstat(&fd).map_err(|source| TreeError::Io { path: path.to_owned(), source })?;
    match node_of(&facts).kind {
        NodeKind::File => Ok(File::from(fd)),
        _ => Err(TreeError::NotAFile { path: path.to_owned() }),
    }
}

fn io(path: &str, error: &std::io::Error) -> TreeError {
    let source = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    TreeError::Io { path: path.to_owned(), source }
}

/// The largest text file of sysfs is a page; configuration files are small.
const MAX_TEXT: usize = 64 << 10;
/// The first processors of a large `/proc/cpuinfo`, and a long `/proc/net/tcp`.
const MAX_LINES: u64 = 256 << 10;
/// Nodes and answers of one machine.
const MAX_RECORDING: usize = 1 << 20;
/// More processes than any host has by default (`kernel.pid_max` may be larger).
const MAX_ENTRIES: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, HostTree) {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let tree = HostTree::open(root.path()).unwrap();
        (root, tree)
    }

    #[test]
    fn no_link_leaves_the_root() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "outside").unwrap();
        let (root, tree) = tree(&[("sys/a", "inside\n"), ("etc/secret", "the tree's own")]);
        std::os::unix::fs::symlink(outside.path().join("secret"), root.path().join("sys/absolute")).unwrap();
        std::os::unix::fs::symlink("../../../../../../etc/secret", root.path().join("sys/upward")).unwrap();
        assert_eq!(tree.text("sys/a").unwrap(), "inside");
        assert!(tree.text("sys/absolute").unwrap_err().is_missing());
        assert_eq!(tree.text("sys/upward").unwrap(), "the tree's own");
        assert_eq!(tree.text("../../sys/a").unwrap(), "inside");
    }

    #[test]
    fn large_files_directories_and_devices_are_refused() {
        let (_root, small) = tree(&[("big", &"x".repeat(MAX_TEXT + 1)), ("fits", &"x".repeat(MAX_TEXT))]);
        assert!(matches!(small.text("big"), Err(TreeError::TooLarge { .. })));
        assert_eq!(small.text("fits").unwrap().len(), MAX_TEXT);
        assert!(matches!(small.text("."), Err(TreeError::NotAFile { .. })));
        let machine = HostTree::open(Path::new("/")).unwrap();
        assert!(matches!(machine.text("dev/null"), Err(TreeError::NotAFile { .. })));
        assert_eq!(machine.node("dev/null").unwrap().kind, NodeKind::CharacterDevice);
    }

    #[test]
    fn a_missing_file_is_not_made() {
        let (root, tree) = tree(&[("sys/there", "old value")]);
        assert!(tree.write("sys/not-there", "1").unwrap_err().is_missing());
        assert!(!root.path().join("sys/not-there").exists());
        tree.write("sys/there", "1").unwrap();
        assert_eq!(tree.text("sys/there").unwrap(), "1");
    }

    #[test]
    fn a_recording_answers_for_nodes_and_is_refused_when_malformed() {
        let described = r#"{"nodes":{"dev/kvm":{"kind":"character-device","mode":432,"uid":0,"gid":107}}}"#;
        let (_root, recorded) = tree(&[("recording.json", described)]);
        let node = recorded.node("dev/kvm").unwrap();
        assert_eq!((node.kind, node.mode), (NodeKind::CharacterDevice, 0o660));
        assert!(node.open_to_others());
        assert!(!recorded.exists("dev/sgx_enclave"));
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("recording.json"), r#"{"knodes":{}}"#).unwrap();
        assert!(matches!(HostTree::open(root.path()), Err(TreeError::Recording { .. })));
    }

    #[test]
    fn only_kept_lines_are_remembered() {
        let (_root, tree) = tree(&[("proc/x", "Model: a\nUUID: GPU-1234\nMinor: 3\n")]);
        tree.start_logging();
        let keep = |line: &str| line.starts_with('M').then(|| line.to_owned());
        assert_eq!(tree.lines("proc/x", keep).unwrap(), ["Model: a", "Minor: 3"]);
        let log = tree.take_log();
        assert_eq!(log.files.get("proc/x").unwrap(), b"Model: a\nMinor: 3\n");
    }
}
