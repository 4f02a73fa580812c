// SPDX-License-Identifier: Apache-2.0
//! Bumps lock files to what the machine's own apt configuration offers, with apt's own resolution and signature checks in
//! a state directory of its own: nothing of this machine's packages is read or changed.

use std::collections::BTreeMap;
use std::path::Path;

use types::Sha256Digest;

use crate::command::{Tool, ToolError};
use crate::fetch::{self, FetchError, Sources};
use crate::files::{self, FileError};
use crate::locks::{Kind, LockError, LockedPackage, NamedLock, NamedSet};
use crate::progress::Progress;
use crate::rust::{self, NamedRust, RustError};
use crate::unpack::{self, UnpackError};
use crate::workspace::Workspace;

/// Why a lock was not bumped. It is unchanged then.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// A lock was refused.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The archive or a package could not be had.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The new package does not hold a member.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// apt is missing or failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The Rust toolchain could not be measured.
    #[error(transparent)]
    Rust(#[from] RustError),
    /// apt said something unexpected.
    #[error("apt: {0}")]
    Apt(String),
    /// A lock has no line to change.
    #[error("{file} has no line for {field}")]
    NoLine {
        /// The lock file.
        file: String,
        /// The field.
        field: &'static str,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A package whose version or bytes moved.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// The lock.
    pub lock: String,
    /// The package.
    pub package: String,
    /// The version before; `None` when it is new.
    pub old: Option<String>,
    /// The version now; `None` when it is gone.
    pub new: Option<String>,
}

/// What an update did.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct Updated {
    /// What moved.
    pub changes: Vec<Change>,
    /// Locks that name no suite: they are bumped by hand.
    pub by_hand: Vec<String>,
}

/// Bumps the named locks in `image/locks`, or all.
///
/// # Errors
/// [`UpdateError`]; locks before the failing one may have been bumped.
pub fn update_locks(
    workspace: &Workspace,
    names: &[String],
    sources: &Sources,
    progress: &dyn Progress,
) -> Result<Updated, UpdateError> {
    let directory = workspace.image("locks");
    let wanted = |name: &str| names.is_empty() || names.iter().any(|n| n == name);
    let mut updated = Updated::default();
    for lock in crate::locks::read_all(&directory)?.iter().filter(|l| wanted(&l.name)) {
        match (&lock.lock.suite, lock.lock.kind) {
            (Some(suite), Kind::Debian) => {
                progress.step(&format!("look for {} in {suite}", lock.lock.package));
                let apt = Apt::open(suite, &["main".to_owned()], sources)?;
                let found = apt.describe(std::slice::from_ref(&lock.lock.package))?;
                let found = found.first().ok_or_else(|| UpdateError::Apt(format!("no {}", lock.lock.package)))?;
                updated.changes.extend(update_one(&directory, lock, found, sources, progress)?);
            }
            _ => updated.by_hand.push(lock.name.clone()),
        }
    }
    for set in crate::locks::read_sets(&directory)?.iter().filter(|s| wanted(&s.name)) {
        progress.step(&format!("resolve {} in {}", set.name, set.set.suite));
        let apt = Apt::open(&set.set.suite, &set.set.components, sources)?;
        let mut packages =
            if set.set.alone { apt.describe_all(&set.set.want)? } else { apt.resolve(&set.set.want, &set.set.omit)? };
        if let Some(base) = &set.set.over {
            // Sets are bumped in the order of their names: a set that others stand on must come before them.
            let base = NamedSet::read(&directory.join(format!("{base}.toml")))?;
            packages.retain(|package| base.version(&package.package).is_none());
        }
        updated.changes.extend(update_set(&directory, set, &packages)?);
    }
    if wanted("rust") {
        updated.changes.extend(update_rust(workspace, &directory)?);
    }
    Ok(updated)
}

fn update_one(
    directory: &Path,
    old: &NamedLock,
    found: &LockedPackage,
    sources: &Sources,
    progress: &dyn Progress,
) -> Result<Option<Change>, UpdateError> {
    if found.sha256 == old.lock.sha256 && found.version == old.lock.version {
        return Ok(None);
    }
    let file = directory.join(format!("{}.toml", old.name));
    let mut new = old.clone();
    new.lock.version.clone_from(&found.version);
    new.lock.path.clone_from(&found.path);
    (new.lock.size, new.lock.sha256) = (found.size, found.sha256);
    let package = fetch::fetch_input(&new, sources, progress)?;
    let text = String::from_utf8_lossy(&files::read_capped(&file, MAX_LOCK)?).into_owned();
    let mut parts = text.split("[[member]]");
    let mut changed = vec![replace(
        &file,
        parts.next().unwrap_or_default(),
        &[
            ("version", format!("{:?}", found.version)),
            ("path", format!("{:?}", found.path)),
            ("size", found.size.to_string()),
            ("sha256", format!("\"{}\"", found.sha256)),
        ],
    )?];
    for (part, member) in parts.zip(&old.lock.members) {
        let (size, sha256) = unpack::debian_member_digest(&package, &member.path)?;
        changed.push(replace(&file, part, &[("size", size.to_string()), ("sha256", format!("\"{sha256}\""))])?);
    }
    files::write_whole(&file, changed.join("[[member]]").as_bytes())?;
    Ok(Some(Change {
        lock: old.name.clone(),
        package: old.lock.package.clone(),
        old: Some(old.lock.version.clone()),
        new: Some(found.version.clone()),
    }))
}

fn update_set(directory: &Path, old: &NamedSet, packages: &[LockedPackage]) -> Result<Vec<Change>, UpdateError> {
    let by_name = |list: &[LockedPackage]| -> BTreeMap<String, (String, Sha256Digest)> {
        list.iter().map(|p| (p.package.clone(), (p.version.clone(), p.sha256))).collect()
    };
    let (before, after) = (by_name(&old.set.packages), by_name(packages));
    let mut changes = Vec::new();
    for package in before.keys().chain(after.keys().filter(|name| !before.contains_key(*name))) {
        let (old_state, new_state) = (before.get(package), after.get(package));
        if old_state != new_state {
            let version = |state: Option<&(String, Sha256Digest)>| state.map(|s| s.0.clone());
            let (lock, package) = (old.name.clone(), package.clone());
            changes.push(Change { lock, package, old: version(old_state), new: version(new_state) });
        }
    }
    if !changes.is_empty() {
        let file = directory.join(format!("{}.toml", old.name));
        let text = String::from_utf8_lossy(&files::read_capped(&file, MAX_LOCK)?).into_owned();
        files::write_whole(&file, with_packages(&file, &text, packages)?.as_bytes())?;
    }
    Ok(changes)
}

/// The lock's text with another list of packages; everything else stays.
fn with_packages(file: &Path, text: &str, packages: &[LockedPackage]) -> Result<String, UpdateError> {
    let missing = || UpdateError::NoLine { file: file.display().to_string(), field: "packages" };
    let (before, rest) = text.split_once(LIST_BEGIN).ok_or_else(missing)?;
    // An empty list ends where it begins.
    let after = rest.strip_prefix(LIST_END.trim_start_matches('\n'));
    let after = after.or_else(|| Some(rest.split_once(LIST_END)?.1)).ok_or_else(missing)?;
    let line = |p: &LockedPackage| {
        let LockedPackage { package, version, path, size, sha256 } = p;
        format!(
            "    {{ package = {package:?}, version = {version:?}, path = {path:?}, size = {size}, sha256 = \"{sha256}\" }},\n"
        )
    };
    let lines: String = packages.iter().map(line).collect();
    Ok(format!("{before}{LIST_BEGIN}{lines}{}{after}", LIST_END.trim_start_matches('\n')))
}

fn update_rust(workspace: &Workspace, directory: &Path) -> Result<Option<Change>, UpdateError> {
    let old = NamedRust::read(directory)?.lock;
    let channel = workspace.toolchain();
    let found = rust::measure(workspace, &old.components)?;
    if found.sha256 == old.sha256 && channel == old.channel {
        return Ok(None);
    }
    let file = directory.join("rust.toml");
    let text = String::from_utf8_lossy(&files::read_capped(&file, MAX_LOCK)?).into_owned();
    let text = replace(
        &file,
        &text,
        &[
            ("channel", format!("{channel:?}")),
            ("entries", found.entries.to_string()),
            ("size", found.size.to_string()),
            ("sha256", format!("\"{}\"", found.sha256)),
        ],
    )?;
    files::write_whole(&file, text.as_bytes())?;
    let (lock, package) = ("rust".to_owned(), "rust".to_owned());
    Ok(Some(Change { lock, package, old: Some(old.channel), new: Some(channel.to_owned()) }))
}

/// Replaces the values of `field = value` lines, each of which must be there once.
fn replace(file: &Path, text: &str, values: &[(&'static str, String)]) -> Result<String, UpdateError> {
    let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
    for (field, value) in values {
        let begin = format!("{field} = ");
        let line = lines.iter_mut().find(|line| line.starts_with(&begin));
        let line = line.ok_or_else(|| UpdateError::NoLine { file: file.display().to_string(), field })?;
        *line = format!("{begin}{value}");
    }
    Ok(lines.join("\n"))
}

/// apt with a state directory of its own, for one suite.
struct Apt {
    directory: tempfile::TempDir,
}

impl Apt {
    fn open(suite: &str, components: &[String], sources: &Sources) -> Result<Self, UpdateError> {
        let at = |e| FileError::at(Path::new("apt's state"), e);
        let directory = tempfile::tempdir().map_err(at)?;
        for name in ["lists/partial", "cache/archives/partial"] {
            files::create_directories(&directory.path().join(name))?;
        }
        files::write_whole(&directory.path().join("status"), b"")?;
        let mirror = fetch::debian_mirrors(sources)?.into_iter().next().unwrap_or_default();
        let signed = if Path::new(KEYRING).is_file() { format!("[signed-by={KEYRING}] ") } else { String::new() };
        let line = format!("deb {signed}{mirror} {suite} {}\n", components.join(" "));
        files::write_whole(&directory.path().join("sources.list"), line.as_bytes())?;
        let apt = Self { directory };
        apt.tool("apt-get").args(["-qq", "update"]).output()?;
        Ok(apt)
    }

    fn tool(&self, program: &str) -> Tool {
        let root = self.directory.path().display();
        let options = [
            format!("Dir::State={root}"),
            format!("Dir::State::Lists={root}/lists"),
            format!("Dir::State::status={root}/status"),
            format!("Dir::Cache={root}/cache"),
            format!("Dir::Etc::SourceList={root}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            "APT::Install-Recommends=false".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ];
        let tool = Tool::new(program, "install the Debian package apt").env("LC_ALL", "C");
        options.iter().fold(tool, |tool, option| tool.args(["-o", option]))
    }

    /// The packages that installing `want` on an empty system would bring, but those of `omit`.
    fn resolve(&self, want: &[String], omit: &[String]) -> Result<Vec<LockedPackage>, UpdateError> {
        let plan = self.tool("apt-get").args(["--simulate", "-qq", "install"]).args(want).output()?;
        let mut names = Vec::new();
        for line in plan.lines().filter_map(|line| line.strip_prefix("Inst ")) {
            let name = line.split_whitespace().next().unwrap_or_default();
            if !omit.iter().any(|o| o == name) {
                names.push(name.to_owned());
            }
        }
        self.describe_all(&names)
    }

    /// The current version of each package; all must be there.
    fn describe_all(&self, names: &[String]) -> Result<Vec<LockedPackage>, UpdateError> {
        let found = self.describe(names)?;
        if found.len() == names.len() && !names.is_empty() {
            return Ok(found);
        }
        Err(UpdateError::Apt(format!("{} packages wanted, {} described", names.len(), found.len())))
    }

    /// The current version of each package, sorted by name.
    fn describe(&self, names: &[String]) -> Result<Vec<LockedPackage>, UpdateError> {
        let said = self.tool("apt-cache").args(["--no-all-versions", "show"]).args(names).output()?;
        let mut found =
            said.split("\n\n").filter(|s| !s.trim().is_empty()).map(stanza).collect::<Result<Vec<_>, _>>()?;
        found.sort_by(|a, b| a.package.cmp(&b.package));
        found.dedup();
        Ok(found)
    }
}

fn stanza(text: &str) -> Result<LockedPackage, UpdateError> {
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.map(str::to_owned).ok_or_else(|| UpdateError::Apt(format!("a package without {name}")))
    };
    let bad = |name: &str| UpdateError::Apt(format!("a package with a malformed {name}"));
    Ok(LockedPackage {
        package: field("Package")?,
        version: field("Version")?,
        path: field("Filename")?,
        size: field("Size")?.parse().map_err(|_| bad("Size"))?,
        sha256: field("SHA256")?.parse().map_err(|_| bad("SHA256"))?,
    })
}

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const LIST_BEGIN: &str = "packages = [\n";
const LIST_END: &str = "\n]\n";
const MAX_LOCK: u64 = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const STANZA: &str = "Package: a\nSource: b\nVersion: 1:2\nFilename: pool/main/a/a_2.deb\nSize: 7\nMD5sum: x\nSHA256: 78e0d54df11fc77406cb7a0bc9a39e5bca6d1cbe06556b91d9a73491c52decdf";

    #[test]
    fn what_apt_says_is_read() {
        let package = stanza(STANZA).unwrap();
        assert_eq!((package.version.as_str(), package.size), ("1:2", 7));
        for (from, to) in [("Size: 7", "Size: x"), ("SHA256: 78", "SHA256: 8"), ("Filename", "Name")] {
            assert!(stanza(&STANZA.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn only_the_values_change() {
        let file = Path::new("x.toml");
        let text = "# reason\nversion = \"1\"\nsize = 3\nlicence = \"x\"\n";
        let new = replace(file, text, &[("version", "\"2\"".into()), ("size", "4".into())]).unwrap();
        assert_eq!(new, "# reason\nversion = \"2\"\nsize = 4\nlicence = \"x\"\n");
        assert!(matches!(replace(file, text, &[("path", String::new())]), Err(UpdateError::NoLine { .. })));
    }

    #[test]
    fn a_list_of_packages_is_replaced_and_nothing_else() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../locks");
        let file = directory.join("build-root.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let set = NamedSet::read(&file).unwrap();
        assert_eq!(with_packages(&file, &text, &set.set.packages).unwrap(), text);
        let fewer = with_packages(&file, &text, set.set.packages.get(1..).unwrap()).unwrap();
        assert_eq!(fewer.lines().count() + 1, text.lines().count());
        let empty = with_packages(&file, &text, &[]).unwrap();
        assert_eq!(with_packages(&file, &empty, &set.set.packages).unwrap(), text);
    }
}
