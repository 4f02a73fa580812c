// SPDX-License-Identifier: Apache-2.0
//! Builds images twice, with everything different that must not matter, and compares every byte of what came out.
//!
//! The second build has another directory, user (as root), umask, locale, time zone, number of jobs, cache and place of the
//! Rust toolchain; both start from empty caches and one archive of inputs, without network. The clock is the same: a
//! time namespace cannot shift the clock that files and compilers see, and setting the machine's own would disturb others.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{process, programs, workspace};

/// Builds twice and compares.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask repro --profile sim\n  cargo xtask repro --dir /var/tmp/repro --keep\n\n\
    Exit codes: 0 identical, 2 not, 1 anything else. The last line on stdout is one JSON document."
)]
pub(crate) struct ReproArgs {
    /// Profiles [default: cpu and sim].
    #[arg(long = "profile", value_name = "P")]
    profiles: Vec<String>,
    /// Where to build (about 12 GB); must be reachable for every user.
    #[arg(long, default_value = "/var/tmp/chrysalis-repro")]
    dir: PathBuf,
    /// Keep what was built.
    #[arg(long)]
    keep: bool,
}

/// Runs the task; says whether everything was identical.
pub(crate) fn run(args: &ReproArgs) -> anyhow::Result<bool> {
    let profiles =
        if args.profiles.is_empty() { vec!["cpu".to_owned(), "sim".to_owned()] } else { args.profiles.clone() };
    anyhow::ensure!(
        !args.dir.exists(),
        "{} is there already: remove it, or name another with --dir",
        args.dir.display()
    );
    std::fs::create_dir_all(&args.dir).with_context(|| args.dir.display().to_string())?;
    let result = build_and_compare(&args.dir, &profiles);
    if !args.keep {
        std::fs::remove_dir_all(&args.dir).with_context(|| args.dir.display().to_string())?;
    }
    let document = result?;
    println!("{document}");
    Ok(document.get("identical") == Some(&Value::Bool(true)))
}

fn build_and_compare(dir: &Path, profiles: &[String]) -> anyhow::Result<Value> {
    let tool = image_tool(dir)?;
    let archive = dir.join("inputs.tar");
    let root = workspace::root()?;
    let mut export = process::command(&tool);
    export.args(["inputs", "export", "--out"]).arg(&archive).args(INPUTS);
    process::run("inputs", export.current_dir(&root).stdout(Stdio::null()))?;
    let sides = [Side::first(dir), Side::second(dir)];
    // Both copies of the source are made before anything is compiled: somebody may be working on it.
    for side in &sides {
        side.prepare(&root)?;
    }
    for side in &sides {
        let archive = archive.to_string_lossy();
        side.image(&tool, &[&["inputs", "import", &archive], &INPUTS[..]].concat())?;
        for profile in profiles {
            eprintln!("== {profile} in {}", side.dir.display());
            let out = side.dir.join("out").join(profile);
            let jobs = side.jobs.to_string();
            side.image(&tool, &["build", "--profile", profile, "--jobs", &jobs, "--out", &out.to_string_lossy()])?;
        }
    }
    let [first, second] = &sides;
    let mut compared = Vec::new();
    for profile in profiles {
        let files = compare(&first.dir.join("out").join(profile), &second.dir.join("out").join(profile))?;
        let identical = !files.is_empty() && files.iter().all(|file| file.get("identical") == Some(&Value::Bool(true)));
        compared.push(json!({"name": profile, "identical": identical, "files": files}));
    }
    let identical = compared.iter().all(|profile| profile.get("identical") == Some(&Value::Bool(true)));
    let varied = varied(second);
    let same = ["clock: it cannot be set for one build alone", "kernel and processor of this machine"];
    Ok(json!({"identical": identical, "profiles": compared, "varied": varied, "not_varied": same}))
}

/// The image tool, built and copied to where every user can run it.
fn image_tool(dir: &Path) -> anyhow::Result<PathBuf> {
    let place = dir.join("image");
    std::fs::copy(programs::build(&["image"])?.join("image"), &place).context("image tool")?;
    Ok(place)
}

/// One of the two builds.
struct Side {
    dir: PathBuf,
    user: Option<u32>,
    umask: &'static str,
    locale: &'static str,
    zone: &'static str,
    jobs: usize,
    own_toolchain: bool,
}

impl Side {
    fn first(dir: &Path) -> Self {
        let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let dir = dir.join("a");
        Self { dir, user: None, umask: "022", locale: "C", zone: "UTC", jobs, own_toolchain: false }
    }

    fn second(dir: &Path) -> Self {
        let dir = dir.join("another/and longer/path").to_path_buf();
        let user = nix::unistd::geteuid().is_root().then_some(NOBODY);
        let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) + 1;
        Self { dir, user, umask: "077", locale: "tr_TR.UTF-8", zone: "Asia/Kathmandu", jobs, own_toolchain: true }
    }

    /// Copies the source, and the toolchain where this side has its own; hands everything to the side's user.
    fn prepare(&self, root: &Path) -> anyhow::Result<()> {
        for name in ["source", "home", "cache", "out"] {
            std::fs::create_dir_all(self.dir.join(name)).with_context(|| self.dir.display().to_string())?;
        }
        let mut list = Command::new("git");
        list.args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]).current_dir(root);
        let listed = list.output().context("git ls-files")?;
        anyhow::ensure!(listed.status.success(), "git ls-files failed");
        for name in String::from_utf8(listed.stdout).context("a file name is not UTF-8")?.split_terminator('\0') {
            if root.join(name).is_file() {
                copy(&root.join(name), &self.dir.join("source").join(name))?;
            }
        }
        if self.own_toolchain {
            copy_toolchain(root, &self.dir.join("toolchain"))?;
        }
        if let Some(user) = self.user {
            let mut chown = process::command("chown");
            process::run("chown", chown.args(["-R", &format!("{user}:{user}")]).arg(&self.dir))?;
        }
        Ok(())
    }

    /// Runs the image tool as this side's user with its settings.
    fn image(&self, tool: &Path, arguments: &[&str]) -> anyhow::Result<()> {
        // A network without interfaces: everything comes from the archive.
        let mut command = process::command("unshare");
        command.arg("--net");
        if !nix::unistd::geteuid().is_root() {
            command.args(["--user", "--map-current-user"]);
        }
        command.args(["--", "setpriv"]);
        if let Some(user) = self.user {
            command.args([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()]);
        }
        command.args(["--", "sh", "-c", &format!("umask {}; exec \"$@\"", self.umask), "sh"]).arg(tool).args(arguments);
        command
            .current_dir(self.dir.join("source"))
            .stdout(Stdio::null())
            .env("CHRYSALIS_CACHE", self.dir.join("cache"));
        command.env("LC_ALL", self.locale).env("LANG", self.locale).env("TZ", self.zone);
        if self.own_toolchain {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let path = std::iter::once(self.dir.join("toolchain/bin")).chain(std::env::split_paths(&path));
            command.env("PATH", std::env::join_paths(path).context("PATH")?);
            command.env("HOME", self.dir.join("home")).env("CARGO_HOME", self.dir.join("home/.cargo"));
        }
        process::run("image", &mut command)
    }
}

fn varied(side: &Side) -> Vec<String> {
    let mut varied = vec![format!("directory: {}", side.dir.display())];
    varied.extend(side.user.map(|user| format!("user: {user}")));
    for (what, value) in [("umask", side.umask), ("locale", side.locale), ("time zone", side.zone)] {
        varied.push(format!("{what}: {value}"));
    }
    varied.push(format!("jobs: {}", side.jobs));
    varied.push("caches: none shared; place of the Rust toolchain".to_owned());
    varied
}

/// The files of the toolchain that its components list, and the lists.
fn copy_toolchain(root: &Path, to: &Path) -> anyhow::Result<()> {
    let mut rustc = process::command("rustc");
    let (said, status) = process::output("rustc", rustc.args(["--print", "sysroot"]).current_dir(root))?;
    anyhow::ensure!(status.success(), "rustc --print sysroot failed");
    let from = PathBuf::from(said.trim());
    for component in ["rustc", "rust-std", "cargo"] {
        let manifest = format!("lib/rustlib/manifest-{component}-x86_64-unknown-linux-gnu");
        let text = std::fs::read_to_string(from.join(&manifest)).with_context(|| manifest.clone())?;
        copy(&from.join(&manifest), &to.join(&manifest))?;
        for file in text.lines().filter_map(|line| line.strip_prefix("file:")) {
            if file.starts_with("bin/") || file.starts_with("lib/") {
                copy(&from.join(file), &to.join(file))?;
            }
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    std::fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    Ok(())
}

/// Every file of two directories, byte by byte.
fn compare(first: &Path, second: &Path) -> anyhow::Result<Vec<Value>> {
    let names = |dir: &Path| -> anyhow::Result<BTreeSet<String>> {
        let entries = std::fs::read_dir(dir).with_context(|| dir.display().to_string())?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    let mut files = Vec::new();
    for name in names(first)?.union(&names(second)?) {
        let read = |dir: &Path| std::fs::read(dir.join(name)).ok();
        let (a, b) = (read(first), read(second));
        let digest =
            |bytes: &Vec<u8>| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let sha256: Vec<Option<String>> = [&a, &b].map(|bytes| bytes.as_ref().map(digest)).to_vec();
        let size = a.as_ref().map(Vec::len);
        files.push(json!({"name": name, "identical": a.is_some() && a == b, "size": size, "sha256": sha256}));
    }
    Ok(files)
}

/// The locks that an image is built from.
const INPUTS: [&str; 4] = ["ovmf", "linux-source", "build-root", "Cargo.lock"];
/// The user that owns nothing, on Debian and most others.
const NOBODY: u32 = 65534;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_or_one_file_is_a_difference() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let write =
            |dir: &tempfile::TempDir, name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let identical = || {
            let files = compare(a.path(), b.path()).unwrap();
            files.iter().map(|file| file["identical"].as_bool().unwrap()).collect::<Vec<_>>()
        };
        write(&a, "initrd", "x");
        write(&b, "initrd", "x");
        assert_eq!(identical(), [true]);
        write(&b, "initrd", "y");
        write(&a, "cmdline", "z");
        assert_eq!(identical(), [false, false]);
    }
}
