// SPDX-License-Identifier: Apache-2.0
//! A tar of exactly what the checks read.

use std::collections::BTreeSet;
use std::io::Write;

use tar::{Builder, EntryType, Header};
use vfio::{HostTree, NodeKind, Recording, TreeError};

use crate::checks;
use crate::host::{Host, Settings};
use crate::probes::Probes;
use crate::report::Report;

/// What a recording does not hold, for people who send one.
pub const LEFT_OUT: &[&str] = &[
    "serial numbers of machine, board and memory (DMI is not read)",
    "the machine's name, its network addresses and its processes",
    "UUIDs and serial numbers of GPUs, disks and file systems",
    "the kernel's command line and messages",
    "all but the first processor's entry of /proc/cpuinfo",
];

/// Why nothing was recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Writing the archive.
    #[error("the archive cannot be written: {0}")]
    Write(#[from] std::io::Error),
    /// The description.
    #[error("the description cannot be written: {0}")]
    Describe(#[from] serde_json::Error),
    /// The tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Runs all checks and writes what they read as a tar. Unpacked, it is a root that gives the same report.
///
/// # Errors
/// [`RecordError`].
pub fn record(
    tree: &HostTree,
    probes: &dyn Probes,
    settings: Settings,
    archive: impl Write,
) -> Result<Report, RecordError> {
    tree.start_logging();
    let host = Host::new(tree, probes, settings);
    let report = checks::run(&host);
    let log = tree.take_log();
    let mut out = Builder::new(archive);
    let files: BTreeSet<&str> = log.files.keys().chain(log.links.keys()).map(String::as_str).collect();
    for path in log.directories.iter().filter(|path| !files.contains(path.as_str())) {
        // A name that was listed only: what it is does not matter, and it may have files below it.
        append(&mut out, path, EntryType::Directory, &[], None)?;
    }
    for (path, content) in &log.files {
        append(&mut out, path, EntryType::Regular, content, None)?;
    }
    for (path, name) in &log.links {
        append(&mut out, path, EntryType::Symlink, &[], Some(name))?;
    }
    let nodes = log.nodes.into_iter().filter(|(path, node)| {
        let plain = matches!(node.kind, NodeKind::Directory | NodeKind::File);
        !(plain && (files.contains(path.as_str()) || log.directories.contains(path)))
    });
    let description = Recording { nodes: nodes.collect(), answers: host.answers() };
    append(&mut out, HostTree::RECORDING, EntryType::Regular, &serde_json::to_vec_pretty(&description)?, None)?;
    out.into_inner()?.flush()?;
    Ok(report)
}

fn append(
    out: &mut Builder<impl Write>,
    path: &str,
    kind: EntryType,
    content: &[u8],
    link: Option<&str>,
) -> std::io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_size(content.len() as u64);
    header.set_mtime(0);
    match link {
        Some(link) => out.append_link(&mut header, path, link),
        None => out.append_data(&mut header, path, content),
    }
}
