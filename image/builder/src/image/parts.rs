// SPDX-License-Identifier: Apache-2.0
//! The files of an image and their description.

use std::path::Path;

use types::Sha256Digest;

use super::ToolVersions;
use super::{BuildError, ImageManifest, ManifestFile, ManifestInput, RootEntry, RootNode, SCHEMA, SOURCE_DATE_EPOCH};
use crate::compression;
use crate::disk::Disk;
use crate::files::{self, FileDigest, FileError};
use crate::kernel::Kernel;
use crate::newc::Archive;
use crate::profile::Profile;
use crate::runtime::Runtime;
use crate::sbom;

/// What an image is put together from.
pub(super) struct Parts<'a> {
    profile: &'a Profile,
    firmware: Vec<u8>,
    kernel: &'a Kernel,
    initrd: Vec<u8>,
    root: Vec<RootEntry>,
    runtime: &'a Runtime,
    disk: Option<&'a Disk>,
}

impl<'a> Parts<'a> {
    /// Makes the initial RAM disk; the other parts are taken as they are.
    ///
    /// # Errors
    /// [`BuildError`].
    pub(super) fn new(
        profile: &'a Profile,
        firmware: Vec<u8>,
        kernel: &'a Kernel,
        runtime: &'a Runtime,
        disk: Option<&'a Disk>,
    ) -> Result<Self, BuildError> {
        let (initrd, root) = initrd(profile, runtime)?;
        Ok(Self { profile, firmware, kernel, initrd, root, runtime, disk })
    }

    /// Writes the image's files; the description is removed first.
    ///
    /// # Errors
    /// [`BuildError`]; no description is left then.
    pub(super) fn write(self, out: &Path, inputs: &[ManifestInput]) -> Result<ImageManifest, BuildError> {
        files::create_directories(out)?;
        remove(&out.join(DESCRIPTION))?;
        remove(&out.join(DISK))?;
        let disk_word = self.disk.map(Disk::word);
        let words = [self.profile.command_line.as_str()].into_iter().chain(disk_word.as_deref());
        let command_line = words.collect::<Vec<_>>().join(" ");
        let vmlinuz = files::read_capped(&self.kernel.image, MAX_KERNEL)?;
        let contents = [
            ("firmware.fd", self.firmware, "OVMF.fd of the locked package ovmf"),
            ("vmlinuz", vmlinuz, "compiled from the locked package linux-source"),
            ("initrd", self.initrd, "this repository's programs"),
            ("cmdline", command_line.clone().into_bytes(), "this repository's profile"),
        ];
        let mut listed = Vec::new();
        for (name, bytes, origin) in &contents {
            files::write_whole(&out.join(name), bytes)?;
            listed.push(listed_file(name, FileDigest::of(bytes), origin));
        }
        if let Some(disk) = self.disk {
            let digest = files::copy_whole(&disk.file, &out.join(DISK))?;
            listed.push(listed_file(DISK, digest, "locked packages, compiled modules and this repository's programs"));
        }
        Ok(ImageManifest {
            schema: SCHEMA.to_owned(),
            profile: self.profile.name.clone(),
            command_line,
            source_date_epoch: SOURCE_DATE_EPOCH,
            files: listed,
            initrd: self.root,
            root_disk: self.disk.map(|disk| disk.description.clone()),
            inputs: inputs.to_vec(),
            toolchain: ToolVersions {
                kernel: self.kernel.compiler.clone(),
                programs: self.runtime.toolchain.clone(),
                sources: self.runtime.sources,
            },
        })
    }
}

fn remove(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(FileError::at(path, e)),
        _ => Ok(()),
    }
}

fn listed_file(name: &str, digest: FileDigest, origin: &str) -> ManifestFile {
    let FileDigest { size, sha256, sha384 } = digest;
    ManifestFile { name: name.to_owned(), size, sha256, sha384, origin: origin.to_owned() }
}

/// The compressed archive and the list of what is in it.
fn initrd(profile: &Profile, runtime: &Runtime) -> Result<(Vec<u8>, Vec<RootEntry>), BuildError> {
    let mut archive = Archive::new();
    let mut root = Vec::new();
    let mut list = |path: &str, mode: u32, node| {
        root.push(RootEntry { path: path.to_owned(), mode: format!("{mode:04o}"), node });
    };
    for path in &profile.directories {
        archive.directory(path)?;
        list(path, 0o755, RootNode::Directory);
    }
    for device in &profile.devices {
        let mode = device.permissions().unwrap_or_default();
        archive.char_device(&device.path, mode, device.major, device.minor)?;
        list(&device.path, mode, RootNode::Device { major: device.major, minor: device.minor });
    }
    for link in &profile.links {
        archive.link(&link.path, &link.target)?;
        list(&link.path, 0o777, RootNode::Link { target: link.target.clone() });
    }
    for (program, file) in &runtime.programs {
        let bytes = files::read_capped(file, MAX_PROGRAM)?;
        let (package, size, sha256) = (program.package.clone(), bytes.len() as u64, Sha256Digest::of(&bytes));
        archive.file(&program.path, 0o755, bytes)?;
        list(&program.path, 0o755, RootNode::Program { package, size, sha256 });
    }
    let bytes = compression::compress(&archive.to_bytes()?).map_err(BuildError::Compression)?;
    Ok((bytes, root))
}

/// Writes the bills of materials, then `image.json`: the image is finished.
///
/// # Errors
/// [`BuildError`].
pub(super) fn describe(out: &Path, manifest: &ImageManifest, bill: &sbom::Bill) -> Result<(), BuildError> {
    let documents = [
        ("sbom.spdx.json", serde_json::to_vec_pretty(&sbom::to_spdx(bill))),
        ("sbom.cdx.json", serde_json::to_vec_pretty(&sbom::to_cyclonedx(bill))),
        (DESCRIPTION, serde_json::to_vec_pretty(manifest)),
    ];
    for (name, text) in documents {
        let path = out.join(name);
        files::write_whole(&path, &text.map_err(|e| FileError::at(&path, e.into()))?)?;
    }
    Ok(())
}

const DESCRIPTION: &str = "image.json";
const DISK: &str = "rootfs";
const MAX_KERNEL: u64 = 64 << 20;
const MAX_PROGRAM: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use super::*;
    use crate::image::RootDisk;
    use crate::profile::Program;

    fn parts(dir: &Path, mode: u32, name: &str) -> (Profile, Runtime, Kernel) {
        let profiles = Path::new(env!("CARGO_MANIFEST_DIR")).join("../profiles");
        let profile = Profile::read(&profiles, name).unwrap();
        let program = |p: &Program| {
            let file = dir.join(&p.package);
            std::fs::write(&file, &p.package).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            (p.clone(), file)
        };
        let programs = profile.programs.iter().map(program).collect();
        let runtime =
            Runtime { programs, sources: Sha256Digest::ZERO, toolchain: "t".into(), dependencies: String::new() };
        let image = dir.join("bzImage");
        std::fs::write(&image, "kernel").unwrap();
        (profile, runtime, Kernel { config: image.clone(), image, compiler: "c".into(), development: None })
    }

    struct Written {
        directory: PathBuf,
        manifest: ImageManifest,
    }

    fn read_description(directory: &Path) -> ImageManifest {
        serde_json::from_slice(&std::fs::read(directory.join(DESCRIPTION)).unwrap()).unwrap()
    }

    #[test]
    fn a_disk_is_listed_and_named_on_the_command_line() {
        let dir = tempfile::tempdir().unwrap();
        let (profile, runtime, kernel) = parts(dir.path(), 0o644, "gpu-sim");
        let file = dir.path().join("disk");
        std::fs::write(&file, vec![7; 8192]).unwrap();
        let (root_hash, salt) = (Sha256Digest::of(b"r"), Sha256Digest::of(b"s"));
        let node = RootNode::Packaged { package: "p".into(), size: 1, sha256: Sha256Digest::of(b"f") };
        let entries = vec![RootEntry { path: "/a".into(), mode: "0644".into(), node }];
        let disk = Disk { file, description: RootDisk { root_hash, salt, data_blocks: 1, entries } };
        let out = dir.path().join("out");
        let write = |disk| {
            let parts = Parts::new(&profile, vec![1], &kernel, &runtime, disk).unwrap();
            let manifest = parts.write(&out, &[]).unwrap();
            describe(&out, &manifest, &sbom::tests::example()).unwrap();
            assert_eq!(read_description(&out), manifest);
            manifest
        };
        let manifest = write(Some(&disk));
        assert!(manifest.command_line.ends_with(&format!(" chrysalis.root={root_hash}:{salt}:1")));
        assert_eq!(std::fs::read(out.join("cmdline")).unwrap(), manifest.command_line.as_bytes());
        let listed = manifest.files.iter().find(|file| file.name == "rootfs").unwrap();
        assert_eq!((listed.size, listed.sha256), (8192, Sha256Digest::of(&[7; 8192])));
        assert_eq!(manifest.root_disk.as_ref(), Some(&disk.description));
        let link = manifest.initrd.iter().find(|entry| entry.path == "/lib64").unwrap();
        assert_eq!(link.node, RootNode::Link { target: "/gpu/lib64".into() });
        // An image without a disk leaves none behind.
        assert!(!write(None).command_line.contains("chrysalis.root"));
        assert!(!out.join("rootfs").exists());
    }

    #[test]
    fn an_image_is_described_completely_and_the_same_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let write = |out: &str, mode| {
            let (profile, runtime, kernel) = parts(dir.path(), mode, "debug");
            let parts = Parts::new(&profile, b"firmware".to_vec(), &kernel, &runtime, None).unwrap();
            let directory = dir.path().join(out);
            let manifest = parts.write(&directory, &[]).unwrap();
            describe(&directory, &manifest, &sbom::tests::example()).unwrap();
            assert_eq!(read_description(&directory), manifest);
            Written { directory, manifest }
        };
        let (a, b) = (write("a", 0o644), write("b", 0o700));
        for file in &a.manifest.files {
            let bytes = std::fs::read(a.directory.join(&file.name)).unwrap();
            assert_eq!((file.size, file.sha256), (bytes.len() as u64, Sha256Digest::of(&bytes)));
            assert_eq!(bytes, std::fs::read(b.directory.join(&file.name)).unwrap());
        }
        let text = std::fs::read(a.directory.join(DESCRIPTION)).unwrap();
        assert_eq!(text, std::fs::read(b.directory.join(DESCRIPTION)).unwrap());
        assert_eq!(a.manifest.files.len(), 4);
        assert!(!std::fs::read(a.directory.join("cmdline")).unwrap().ends_with(b"\n"));
        let paths: Vec<_> = a.manifest.initrd.iter().map(|e| e.path.as_str()).collect();
        assert!(paths.contains(&"/init") && paths.contains(&"/bin/attester") && paths.contains(&"/dev/console"));
    }

    #[test]
    fn a_failed_build_leaves_no_description() {
        let dir = tempfile::tempdir().unwrap();
        let (profile, runtime, mut kernel) = parts(dir.path(), 0o644, "debug");
        let out = dir.path().join("out");
        std::fs::create_dir(&out).unwrap();
        std::fs::write(out.join(DESCRIPTION), "old").unwrap();
        kernel.image = dir.path().join("missing");
        let parts = Parts::new(&profile, vec![], &kernel, &runtime, None).unwrap();
        assert!(parts.write(&out, &[]).is_err());
        assert!(!out.join(DESCRIPTION).exists());
    }
}
