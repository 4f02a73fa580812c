// SPDX-License-Identifier: Apache-2.0
//! Reading with a cap, writing so that a crash leaves the old file or the new one.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::Context as _;

pub(crate) fn read_capped(path: &Path, max: usize) -> anyhow::Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
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

/// The last `most` bytes of a file.
pub(crate) fn read_end(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    use std::io::{Seek as _, SeekFrom};
    let mut file = File::open(path)?;
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
}
