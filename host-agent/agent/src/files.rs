// SPDX-License-Identifier: Apache-2.0
//! Reading with a cap, writing so that a crash leaves the old file or the new one.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::fcntl::OFlag;

/// A file that this process's user or root put there; links are followed. Not for run directories: [`read_shared`].
pub(crate) fn read_capped(path: &Path, max: usize) -> anyhow::Result<Vec<u8>> {
    read(File::open(path), path, max)
}

/// A file of a directory that guests' user can write, too: see [`open_shared`].
pub(crate) fn read_shared(path: &Path, max: usize) -> anyhow::Result<Vec<u8>> {
    read(open_shared(path), path, max)
}

/// Opens for reading what guests' user may have put there: a regular file, no link to one, and nothing that has this
/// process wait, such as a pipe without another end.
///
/// # Errors
/// `PermissionDenied` if it is something else.
pub(crate) fn open_shared(path: &Path) -> std::io::Result<File> {
    // std adds O_CLOEXEC.
    let careful = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = OpenOptions::new().read(true).custom_flags(careful).open(path)?;
    if !file.metadata()?.is_file() {
        let error = format!("{} is not a regular file", path.display());
        return Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, error));
    }
    Ok(file)
}

fn read(opened: std::io::Result<File>, path: &Path, max: usize) -> anyhow::Result<Vec<u8>> {
    let file = opened.with_context(|| format!("cannot open {}", path.display()))?;
    let mut bytes = Vec::new();
    file.take(max as u64 + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
    anyhow::ensure!(bytes.len() <= max, "{} has more than {max} bytes", path.display());
    Ok(bytes)
}

pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let temporary = Path::new(&name);
    let write = || -> std::io::Result<()> {
        let mut file = anew(temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(temporary, path)?;
        // The new name is on the disk with its directory only.
        let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// A new file in place of one that may be there: what stands there is never opened, be it a link or somebody else's.
pub(crate) fn anew(path: &Path) -> std::io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Whether this is a directory, no link to one, of the user whose directory it stands in.
pub(crate) fn is_own_directory(path: &Path) -> bool {
    let owner = path.parent().and_then(|above| above.metadata().ok()).map(|above| above.uid());
    path.symlink_metadata().is_ok_and(|found| found.is_dir() && Some(found.uid()) == owner)
}

/// Makes a directory that only its owner may enter.
pub(crate) fn private_directory(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make {}", path.display()))
}

/// Removes names that stand for something of another user than `owner`, or for no file or socket at all: `owner` could
/// neither use nor remove them in a directory with the sticky bit. No link is followed.
pub(crate) fn remove_foreign(paths: impl IntoIterator<Item = PathBuf>, owner: u32) -> std::io::Result<()> {
    for path in paths {
        let Ok(found) = path.symlink_metadata() else { continue };
        let usable = found.is_file() || found.file_type().is_socket();
        if found.uid() == owner && usable {
            continue;
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(std::io::Error::new(error.kind(), format!("{}: {error}", path.display())));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The last `most` bytes of a file, opened as [`open_shared`] does.
pub(crate) fn read_end(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    use std::io::{Seek as _, SeekFrom};
    let mut file = open_shared(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_other_users_directories_are_not_ones_own() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir(at("own")).unwrap();
        assert!(is_own_directory(&at("own")));
        std::os::unix::fs::symlink(at("own"), at("link")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        assert!(!is_own_directory(&at("link")) && !is_own_directory(&at("file")) && !is_own_directory(&at("none")));
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(at("own"), Some(65_534), None).unwrap();
            assert!(!is_own_directory(&at("own")));
            // Root looks at what is a user's own, all of it.
            std::os::unix::fs::chown(directory.path(), Some(65_534), None).unwrap();
            assert!(is_own_directory(&at("own")));
        } else {
            println!("SKIPPED: only root gives directories to another user");
        }
    }

    #[test]
    fn a_link_that_is_in_the_way_is_replaced_and_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("victim"), "old").unwrap();
        std::os::unix::fs::symlink(at("victim"), at("file.new")).unwrap();
        write_atomically(&at("file"), b"new").unwrap();
        assert_eq!(std::fs::read(at("victim")).unwrap(), b"old");
        assert_eq!(std::fs::read(at("file")).unwrap(), b"new");
        assert!(!at("file").symlink_metadata().unwrap().is_symlink());
    }

    #[test]
    fn a_pipe_and_a_link_are_no_shared_files_and_nobody_waits_for_them() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("secret"), "root's").unwrap();
        std::os::unix::fs::symlink(at("secret"), at("qemu.log")).unwrap();
        nix::unistd::mkfifo(&at("progress.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        for name in ["qemu.log", "progress.json", "directory", "missing"] {
            assert!(read_shared(&at(name), 100).is_err() && read_end(&at(name), 100).is_err(), "{name}");
        }
        assert_eq!(read_shared(&at("secret"), 6).unwrap(), b"root's");
        assert!(read_shared(&at("secret"), 5).is_err());
        assert_eq!(read_end(&at("secret"), 3).unwrap(), b"t's");
        assert!(crate::progress::Progress::load(directory.path()).is_none());
    }

    #[test]
    fn what_is_not_the_users_is_removed_before_the_user_needs_the_name() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let own = nix::unistd::geteuid().as_raw();
        for name in ["qemu.log", "launch.json"] {
            std::fs::write(at(name), "").unwrap();
        }
        std::os::unix::fs::symlink(at("launch.json"), at("agent.pid")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("front.sock")).unwrap();
        let names = || ["qemu.log", "agent.pid", "front.sock", "missing"].map(at);
        remove_foreign(names(), own).unwrap();
        assert!(at("qemu.log").exists() && at("front.sock").exists() && at("launch.json").exists());
        assert!(at("agent.pid").symlink_metadata().is_err(), "a link is nobody's file");
        // They are an earlier owner's now.
        remove_foreign(names(), own + 1).unwrap();
        assert!(!at("qemu.log").exists() && !at("front.sock").exists());
        assert!(at("launch.json").exists(), "what is not named stays");
    }
}
