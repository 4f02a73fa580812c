// SPDX-License-Identifier: Apache-2.0
//! Tools that come out of locked Debian packages with every shared library they need.
//!
//! Nothing is installed: files are taken out of their packages into one directory of the cache, and a program is started
//! by the loader beside it. So it runs on any x86-64 Linux, whatever its C library.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use types::Sha256Digest;

use super::HostToolError;
use crate::fetch::{self, Sources};
use crate::files::{self, FileError};
use crate::locks::{self, Kind, Lock, LockError, Member, NamedLock};
use crate::progress::Progress;
use crate::unpack;
use crate::workspace::Workspace;

/// A tool in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackagedTool {
    /// The directory with its files.
    pub directory: PathBuf,
    /// What to start, if it has a program: a script that calls the loader.
    pub program: Option<PathBuf>,
    /// The program itself, to state its digest.
    pub binary: Option<PathBuf>,
}

/// Fetches the packages of the tool `name` (`image/host-tools/NAME.toml`) and takes the locked files out of them.
///
/// # Errors
/// [`HostToolError`]; nothing is kept then.
pub fn host_tool_packaged(
    workspace: &Workspace,
    name: &str,
    sources: &Sources,
    progress: &dyn Progress,
) -> Result<PackagedTool, HostToolError> {
    let directory = workspace.image("host-tools");
    if !names(&directory)?.iter().any(|known| known == name) {
        return Err(HostToolError::Unknown { name: name.to_owned() });
    }
    let tool = ToolLock::read(&directory, name)?;
    let mut packages = tool.locks(name);
    if let Some(libraries) = &tool.libraries {
        packages.extend(ToolLock::read(&directory, libraries)?.locks(libraries));
    }
    let key = key(&tool, &packages);
    let entry = sources.cache.entry("host-tools", &key, progress, |target| {
        for lock in &packages {
            let input = fetch::fetch_input(lock, sources, progress)?;
            for member in &lock.lock.members {
                let bytes = unpack::debian_member(&input, member)?;
                files::write_whole(&target.join(&member.name), &bytes)?;
            }
        }
        if let Some(program) = &tool.program {
            write_executable(&target.join(START), script(program).as_bytes())?;
            make_executable(&target.join(LOADER))?;
        }
        Ok::<(), HostToolError>(())
    })?;
    Ok(PackagedTool {
        program: tool.program.is_some().then(|| entry.file(START)),
        binary: tool.program.as_ref().map(|program| entry.file(program)),
        directory: entry.path,
    })
}

/// Names of the tools, without those that are only libraries for others.
///
/// # Errors
/// [`FileError`].
pub fn packaged_tools(workspace: &Workspace) -> Result<Vec<String>, FileError> {
    names(&workspace.image("host-tools"))
}

/// Every package of `image/host-tools` as a lock, named `TOOL/PACKAGE`: fetched to run, part of no image.
///
/// # Errors
/// [`LockError`] naming the file and the rule.
pub(crate) fn tool_locks(workspace: &Workspace) -> Result<Vec<NamedLock>, LockError> {
    let directory = workspace.image("host-tools");
    let mut found = Vec::new();
    for path in files::list_files(&directory)?.iter().filter(|path| path.extension().is_some_and(|e| e == "toml")) {
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        found.extend(ToolLock::read(&directory, &name)?.locks(&name));
    }
    Ok(found)
}

fn names(directory: &Path) -> Result<Vec<String>, FileError> {
    let files = files::list_files(directory)?;
    let stems = files.iter().filter(|file| file.extension().is_some_and(|e| e == "toml")).filter_map(|f| f.file_stem());
    Ok(stems.map(|stem| stem.to_string_lossy().into_owned()).filter(|name| !name.ends_with("-libraries")).collect())
}

/// A file of `image/host-tools`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolLock {
    /// Why the project needs it.
    reason: String,
    /// The member that is the program.
    program: Option<String>,
    /// The file with the libraries that it needs.
    libraries: Option<String>,
    #[serde(rename = "package")]
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Package {
    package: String,
    version: String,
    path: String,
    size: u64,
    sha256: Sha256Digest,
    licence: String,
    members: Vec<Member>,
}

impl ToolLock {
    fn read(directory: &Path, name: &str) -> Result<Self, LockError> {
        let path = directory.join(format!("{name}.toml"));
        let bytes = files::read_capped(&path, MAX_LOCK)?;
        parse(&path, name, &bytes)
    }

    /// Each package as a lock of its own.
    fn locks(&self, name: &str) -> Vec<NamedLock> {
        let lock = |package: &Package| NamedLock {
            name: format!("{name}/{}", package.package),
            lock: Lock {
                kind: Kind::Debian,
                package: package.package.clone(),
                version: package.version.clone(),
                path: package.path.clone(),
                size: package.size,
                sha256: package.sha256,
                licence: package.licence.clone(),
                reason: self.reason.clone(),
                suite: None,
                members: package.members.clone(),
            },
            lock_sha256: package.sha256,
        };
        self.packages.iter().map(lock).collect()
    }
}

fn parse(path: &Path, name: &str, bytes: &[u8]) -> Result<ToolLock, LockError> {
    let refuse = |field, rule| Err(LockError::Field { path: path.to_owned(), field, rule });
    let Ok(text) = std::str::from_utf8(bytes) else { return refuse("file", "must be UTF-8") };
    let tool: ToolLock =
        toml::from_str(text).map_err(|e| LockError::Syntax { path: path.to_owned(), source: Box::new(e) })?;
    let locks = tool.locks(name);
    for lock in &locks {
        locks::check(path, &lock.lock)?;
    }
    let mut members: Vec<&str> = locks.iter().flat_map(|l| &l.lock.members).map(|m| m.name.as_str()).collect();
    members.sort_unstable();
    if members.contains(&START) || members.windows(2).any(|pair| pair.first() == pair.last()) {
        return refuse("members", "each name must stand once, and not be `start`");
    }
    if let Some(program) = &tool.program
        && !members.contains(&program.as_str())
    {
        return refuse("program", "must be a member");
    }
    if tool.libraries.as_ref().is_some_and(|name| !name.ends_with("-libraries") || name.contains('/')) {
        return refuse("libraries", "must be a file of this directory whose name ends in -libraries");
    }
    Ok(tool)
}

/// Everything that decides what the directory holds.
fn key(tool: &ToolLock, packages: &[NamedLock]) -> Sha256Digest {
    let mut text = format!("packaged/1\n{}\n", tool.program.as_deref().map(script).unwrap_or_default());
    for member in packages.iter().flat_map(|lock| &lock.lock.members) {
        text.push_str(&format!("{} {}\n", member.name, member.sha256));
    }
    Sha256Digest::of(text.as_bytes())
}

/// `program` is a checked member name: no character of it means anything to the shell.
fn script(program: &str) -> String {
    format!(
        "#!/bin/sh\ndir=$(dirname \"$(readlink -f \"$0\")\")\nexec \"$dir/{LOADER}\" --library-path \"$dir\" \"$dir/{program}\" -L \"$dir\" \"$@\"\n"
    )
}

fn write_executable(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    files::write_whole(path, bytes)?;
    make_executable(path)
}

fn make_executable(path: &Path) -> Result<(), FileError> {
    std::fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(|e| FileError::at(path, e))
}

/// What a person or a test starts.
const START: &str = "start";
const LOADER: &str = "ld-linux-x86-64.so.2";
const MAX_LOCK: u64 = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
reason = "r"
program = "tool"
libraries = "c-libraries"

[[package]]
package = "a"
version = "1"
path = "pool/a_1.deb"
size = 5
sha256 = "78e0d54df11fc77406cb7a0bc9a39e5bca6d1cbe06556b91d9a73491c52decdf"
licence = "MIT"
members = [
    { path = "usr/bin/tool", name = "tool", size = 5, sha256 = "78e0d54df11fc77406cb7a0bc9a39e5bca6d1cbe06556b91d9a73491c52decdf" },
    { path = "usr/lib/b.so", name = "b.so", size = 5, sha256 = "78e0d54df11fc77406cb7a0bc9a39e5bca6d1cbe06556b91d9a73491c52decdf" },
]
"#;

    fn read(text: &str) -> Result<ToolLock, LockError> {
        parse(Path::new("x.toml"), "x", text.as_bytes())
    }

    #[test]
    fn each_bad_field_is_named() {
        read(GOOD).unwrap();
        for (from, to, expected) in [
            ("pool/a_1.deb", "http://mirror/pool/a_1.deb", "path"),
            ("program = \"tool\"", "program = \"other\"", "program"),
            ("name = \"b.so\"", "name = \"tool\"", "members"),
            ("name = \"b.so\"", "name = \"start\"", "members"),
            ("name = \"b.so\"", "name = \"../b.so\"", "member"),
            ("name = \"b.so\"", "name = \"$(b)\"", "member"),
            ("path = \"usr/lib/b.so\"", "path = \"/usr/lib/b.so\"", "member"),
            ("c-libraries", "../c-libraries", "libraries"),
            ("c-libraries", "c", "libraries"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let error = read(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(matches!(error, LockError::Field { field, .. } if field == expected), "{to}: {error}");
        }
        assert!(matches!(read(&format!("url = \"x\"\n{GOOD}")), Err(LockError::Syntax { .. })));
    }

    #[test]
    fn the_repository_tools_are_good() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host-tools");
        let names = names(&directory).unwrap();
        assert_eq!(names, ["ovmf-2026.08", "qemu-10.0", "qemu-11.1"]);
        for name in names {
            let tool = ToolLock::read(&directory, &name).unwrap();
            assert_eq!(tool.program.is_some(), name.starts_with("qemu"), "{name}");
            if let Some(libraries) = &tool.libraries {
                let libraries = ToolLock::read(&directory, libraries).unwrap().locks(libraries);
                assert!(libraries.iter().flat_map(|l| &l.lock.members).any(|member| member.name == LOADER));
            }
        }
    }
}
