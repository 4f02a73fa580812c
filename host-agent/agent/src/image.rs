// SPDX-License-Identifier: Apache-2.0
//! The image's directory as a launch needs it.
//!
//! What is checked here spares the provider a guest that halts without a word. It protects nobody: the guest's registers do.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;
use sha2::Digest as _;
use types::{Device, Sha256Digest};

use crate::files;

/// The devices of a guest with this image, after the files were found: those that every guest has, and the root's disk where
/// the image has a root that is the one of its `image.json`.
pub(crate) fn devices(image: &Path) -> anyhow::Result<Vec<Device>> {
    for name in ["firmware.fd", "vmlinuz", "initrd", "cmdline"] {
        anyhow::ensure!(image.join(name).is_file(), "the image {} has no file {name}", image.display());
    }
    let mut devices = vec![Device::ConfigDisk, Device::ModelDisk, Device::Network, Device::Vsock];
    let named = names_root(image)?;
    match root_disk(image) {
        Some(root) => {
            check_digest(image, &root)?;
            devices.push(Device::RootDisk);
        }
        None => anyhow::ensure!(
            !named,
            "the image {} has no file {ROOT}, which its command line names: take all files of the release",
            image.display()
        ),
    }
    Ok(devices)
}

/// The disk with the image's root and its hash tree, where it has one.
pub(crate) fn root_disk(image: &Path) -> Option<PathBuf> {
    Some(image.join(ROOT)).filter(|path| path.is_file())
}

fn names_root(image: &Path) -> anyhow::Result<bool> {
    let line = files::read_capped(&image.join("cmdline"), 4096)?;
    let mut words = line.split(|byte| *byte == b' ');
    Ok(words.any(|word| word.starts_with(b"chrysalis.root=")))
}

fn check_digest(image: &Path, root: &Path) -> anyhow::Result<()> {
    let path = image.join("image.json");
    let bytes = files::read_capped(&path, MAX_LIST).context("the image has a root disk, whose digest is not known")?;
    let list: List =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is no list of files", path.display()))?;
    let mut entries = list.files.iter().filter(|file| file.name == ROOT);
    let (Some(entry), None) = (entries.next(), entries.next()) else {
        anyhow::bail!("{} does not name {ROOT} exactly once: take all files of the release", path.display());
    };
    let found = digest(root).with_context(|| format!("cannot read {}", root.display()))?;
    anyhow::ensure!(
        found == entry.sha256,
        "{} has the digest {found}, {} says {}: fetch it again, a guest with it would panic",
        root.display(),
        path.display(),
        entry.sha256
    );
    Ok(())
}

fn digest(path: &Path) -> anyhow::Result<Sha256Digest> {
    let (mut file, mut hasher, mut buffer) = (File::open(path)?, sha2::Sha256::new(), vec![0; 1 << 20]);
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(Sha256Digest::from_bytes(hasher.finalize().into()));
        }
        hasher.update(buffer.get(..length).context("length of a read")?);
    }
}

/// Of `image.json`, what is needed here; the builder's tools read all of it.
#[derive(Debug, Deserialize)]
struct List {
    files: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    name: String,
    sha256: Sha256Digest,
}

/// erofs data and hash tree in one file.
const ROOT: &str = "rootfs";
const MAX_LIST: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn image(line: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [("firmware.fd", "f"), ("vmlinuz", "k"), ("initrd", "i"), ("cmdline", line)] {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    fn refusal(image: &tempfile::TempDir) -> String {
        format!("{:#}", devices(image.path()).unwrap_err())
    }

    #[test]
    fn only_an_image_with_a_root_has_its_disk() {
        let plain = image("quiet chrysalis.profile=sim");
        assert_eq!(devices(plain.path()).unwrap().len(), 4);
        let gpu = image("quiet chrysalis.profile=gpu chrysalis.root=a:b:1");
        assert!(refusal(&gpu).contains("no file rootfs"));
        let root = gpu.path().join("rootfs");
        std::fs::write(&root, "data and hashes").unwrap();
        assert!(refusal(&gpu).contains("image.json"));
        let list = |name: &str, sha256: Sha256Digest| {
            let list = serde_json::json!({ "schema": "s", "files": [{ "name": name, "sha256": sha256, "size": 15 }] });
            std::fs::write(gpu.path().join("image.json"), list.to_string()).unwrap();
        };
        list("initrd", Sha256Digest::of(b"i"));
        assert!(refusal(&gpu).contains("exactly once"));
        list("rootfs", Sha256Digest::of(b"other"));
        assert!(refusal(&gpu).contains("would panic"));
        list("rootfs", Sha256Digest::of(b"data and hashes"));
        let devices = devices(gpu.path()).unwrap();
        assert_eq!((devices.len(), devices.last()), (5, Some(&Device::RootDisk)));
        assert_eq!(root_disk(gpu.path()), Some(root));
    }
}
