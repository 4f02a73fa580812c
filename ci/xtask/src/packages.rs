// SPDX-License-Identifier: Apache-2.0
//! Packages of other languages that tests run: in the cache, by locked versions and digests. `ci/NAME` has the lock.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use crate::{process, workspace};

/// The directory for Python's path, of what `ci/NAME/requirements.txt` locks.
pub(crate) fn python(name: &str) -> anyhow::Result<PathBuf> {
    let (version, _) = process::output("python3", process::command("python3").arg("--version"))?;
    installed(name, &["requirements.txt"], &version, |lock, place| {
        let mut pip = process::command("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]);
        pip.args(["--only-binary=:all:", "--target"]).arg(place);
        pip.arg("--requirement").arg(lock.join("requirements.txt"));
        Ok(pip)
    })
}

/// The `node_modules` of what `ci/NAME/package-lock.json` locks. No script of a package is run.
pub(crate) fn javascript(name: &str) -> anyhow::Result<PathBuf> {
    let files = ["package.json", "package-lock.json", ".npmrc"];
    let place = installed(name, &files, "npm", |lock, place| {
        for file in files {
            std::fs::copy(lock.join(file), place.join(file)).with_context(|| format!("copying {file}"))?;
        }
        let mut npm = process::command("npm");
        npm.args(["ci", "--no-progress", "--loglevel", "error", "--ignore-scripts"]).current_dir(place);
        npm.stdout(std::process::Stdio::null());
        Ok(npm)
    })?;
    Ok(place.join("node_modules"))
}

/// The directory that `install` fills. It is named by the digest of the lock and of `for_what`, and stands there whole or not
/// at all.
fn installed(
    name: &str,
    files: &[&str],
    for_what: &str,
    install: impl FnOnce(&Path, &Path) -> anyhow::Result<Command>,
) -> anyhow::Result<PathBuf> {
    let lock = workspace::root()?.join("ci").join(name);
    let mut digest = Sha256::new().chain_update(for_what);
    for file in files {
        let path = lock.join(file);
        digest.update(std::fs::read(&path).with_context(|| path.display().to_string())?);
    }
    let parent = workspace::cache()?.join(name);
    let place = parent.join(digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>());
    if place.is_dir() {
        return Ok(place);
    }
    std::fs::create_dir_all(&parent).with_context(|| parent.display().to_string())?;
    let made = tempfile::tempdir_in(&parent).context("temporary directory")?;
    eprintln!("installing {name} below {}", parent.display());
    process::run(&format!("installation of {name}"), &mut install(&lock, made.path())?)?;
    // Somebody else may have been faster.
    if let Err(error) = std::fs::rename(made.path(), &place)
        && !place.is_dir()
    {
        return Err(error).with_context(|| place.display().to_string());
    }
    Ok(place)
}

/// A Python that finds the packages of this directory and no others of the user's.
pub(crate) fn python_with(packages: impl AsRef<OsStr>) -> Command {
    let mut python = process::command("python3");
    python.args(["-s", "-B"]).env("PYTHONPATH", packages);
    python
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn lock(path: &str) -> String {
        std::fs::read_to_string(workspace::root().unwrap().join("ci").join(path)).unwrap()
    }

    #[test]
    fn locks_pin_by_digest_and_name_no_registry() {
        for name in ["schemathesis", "openai-clients"] {
            let text = lock(&format!("{name}/requirements.txt"));
            let packages: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
            assert!(!text.contains("://") && packages.len() > 5, "{name}");
            assert!(packages.iter().all(|line| line.contains("==") && line.contains(" --hash=sha256:")), "{name}");
        }
        let text = lock("openai-clients/package-lock.json");
        assert!(!text.contains("\"resolved\"") && !text.contains("://"), "{text}");
        let lock: Value = serde_json::from_str(&text).unwrap();
        let packages = lock["packages"].as_object().unwrap();
        let pinned = |package: &Value| package["integrity"].as_str().is_some_and(|d| d.starts_with("sha512-"));
        assert!(packages.len() > 1 && packages.iter().all(|(name, package)| name.is_empty() || pinned(package)));
    }
}
